/*
 * FABRIC in the browser: 👍 and 👎 on the result gallery's images, and in the host's full-screen viewer; their counts in the box's header.
 *
 * The buttons are in a layer above the images that lets all other clicks through; their position is read from the screen, so no
 * structure of a gallery must be known.
 */
(function () {
    "use strict";

    const {tabs, root, send, addUrl, idsIn, showsSeveral, schedule, onRedraw} = window.fabricPage;
    const KINDS = {
        likes: {
            emoji: "👍",
            key: "l",
            add: "Like: the next images lean towards this one",
            remove: "Liked. Click again to take it back",
        },
        dislikes: {
            emoji: "👎",
            key: "d",
            add: "Dislike: the next images lean away from this one",
            remove: "Disliked. Click again to take it back",
        },
    };
    const SMALLEST_PICTURE = 20; // pixels on the screen; anything smaller gets no buttons
    const TINY_PICTURE = 70; // below this width, the buttons float above the image while you point at it

    const galleries = Object.fromEntries(Object.keys(tabs).map(name => [name, {element: null, marks: new Map()}]));
    const others = []; // functions: the tab for an image in the viewer that is in no gallery, or null
    let pointedAt = null;

    /* ---- the buttons ---- */

    /** Both buttons; `target()` says which image they are for: `{tab, url}`. */
    function makeMarks(target) {
        const bar = document.createElement("div");
        bar.className = "steer-fabric-marks";
        for (const kind of Object.keys(KINDS)) {
            const button = document.createElement("button");
            button.type = "button";
            button.className = "steer-fabric-mark";
            button.dataset.fabricKind = kind;
            button.textContent = KINDS[kind].emoji;
            button.addEventListener("click", async event => {
                event.preventDefault();
                event.stopPropagation();
                const {tab, url} = target();
                if (!tab) return; // a live preview has just replaced the image
                bar.classList.add("steer-fabric-busy");
                if (isOn(tab, kind, url)) await send(tab, {do: "remove", list: kind, id: tab.ids.get(url)});
                else await addUrl(tab, kind, url);
                bar.classList.remove("steer-fabric-busy");
            });
            // gallery and host have their own keys (arrows, Escape, Enter): not while a mark has the focus
            button.addEventListener("keydown", event => {
                const passes = bar.closest(".steer-fabric-viewer") ? !["Enter", " "].includes(event.key) : event.key === "Escape";
                if (!passes) event.stopPropagation();
            });
            bar.appendChild(button);
        }
        return bar;
    }

    function isOn(tab, kind, url) {
        return idsIn(tab, kind).includes(tab.ids.get(url));
    }

    /** Show on the buttons whether the image is on a list. */
    function showMarks(bar, tab, url, keys = false) {
        for (const button of bar.children) {
            const kind = KINDS[button.dataset.fabricKind];
            const on = isOn(tab, button.dataset.fabricKind, url);
            button.setAttribute("aria-pressed", String(on));
            button.title = (on ? kind.remove : kind.add) + (keys ? ` (key ${kind.key.toUpperCase()})` : "");
            button.setAttribute("aria-label", button.title);
        }
    }

    /* ---- the result gallery ---- */

    /** Whether the image is visible: large enough, on the screen, and not behind another one. */
    function visible(image, layer, box) {
        if (box.width < SMALLEST_PICTURE || box.height < SMALLEST_PICTURE) return false;
        const x = box.left + box.width / 2;
        const y = box.top + box.height / 2;
        if (x < 0 || y < 0 || x >= innerWidth || y >= innerHeight) return false;
        const top = document.elementsFromPoint(x, y).find(element => !layer.contains(element));
        return Boolean(top) && (top.contains(image) || image.contains(top));
    }

    /** Where the image itself is within its element, which may be wider or taller ("object-fit: contain"). */
    function pictureBox(image) {
        const box = image.getBoundingClientRect();
        if (getComputedStyle(image).objectFit !== "contain" || !image.naturalWidth) return box;
        const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
        const width = image.naturalWidth * scale;
        const height = image.naturalHeight * scale;
        return new DOMRect(box.left + (box.width - width) / 2, box.top + (box.height - height) / 2, width, height);
    }

    /** Whether the element is the image or the button it fills. */
    function holds(element, image) {
        return element === image || (element.contains(image) && element.querySelectorAll("img").length === 1);
    }

    function redrawGallery(tab) {
        const element = root().querySelector(`#${tab.name}_gallery`);
        const gallery = galleries[tab.name];
        if (!element) return;
        if (gallery.element !== element) watchGallery(gallery, element);
        let layer = element.querySelector(":scope > .steer-fabric-layer");
        if (!layer) {
            layer = document.createElement("div");
            layer.className = "steer-fabric-layer";
            element.appendChild(layer);
            gallery.marks.clear();
        }
        const frame = layer.getBoundingClientRect();
        const seen = new Set();
        for (const image of element.querySelectorAll("img")) {
            const box = pictureBox(image);
            if (layer.contains(image) || !image.complete || !visible(image, layer, box)) continue;
            if (showsSeveral(tab, image.src)) continue; // nobody likes a grid as such
            seen.add(image);
            if (!gallery.marks.has(image)) {
                gallery.marks.set(image, makeMarks(() => ({tab: tab, url: image.src})));
                layer.appendChild(gallery.marks.get(image));
            }
            const bar = gallery.marks.get(image);
            const tiny = box.width < TINY_PICTURE;
            bar.classList.toggle("steer-fabric-tiny", tiny);
            bar.classList.toggle("steer-fabric-show", tiny && pointedAt !== null && (holds(pointedAt, image) || bar.contains(pointedAt)));
            bar.classList.toggle("steer-fabric-small", !tiny && box.width < 130);
            bar.style.left = `${(tiny ? box.left + box.width / 2 : box.left) - frame.left}px`;
            bar.style.top = `${(tiny ? box.top : box.bottom) - frame.top}px`;
            showMarks(bar, tab, image.src);
        }
        for (const [image, bar] of gallery.marks) {
            if (!seen.has(image)) {
                bar.remove();
                gallery.marks.delete(image);
            }
        }
    }

    function watchGallery(gallery, element) {
        gallery.element = element;
        new MutationObserver(changes => {
            const foreign = change => !(change.target.closest && change.target.closest(".steer-fabric-layer"));
            if (changes.some(foreign)) schedule();
        }).observe(element, {childList: true, subtree: true, attributes: true, attributeFilter: ["src", "class", "style"]});
        element.addEventListener("load", schedule, true);
        new ResizeObserver(schedule).observe(element);
    }

    /* ---- the full-screen viewer of the WebUI ---- */

    /** The open tab whose gallery holds the image, or the one that `others` name; null for live previews and other images. */
    function tabOf(url) {
        for (const other of others) {
            const tab = other(url);
            if (tab) return tab;
        }
        return Object.values(tabs).find(tab => {
            const gallery = root().querySelector(`#${tab.name}_gallery`);
            return gallery && gallery.offsetParent && [...gallery.querySelectorAll("img")].some(image => image.src === url);
        }) || null;
    }

    function redrawViewer() {
        const viewer = document.getElementById("lightboxModal");
        const image = document.getElementById("modalImage");
        if (!viewer || !image) return;
        const layer = viewer.querySelector(":scope > .steer-fabric-layer") || equipViewer(viewer, image);
        const tab = getComputedStyle(viewer).display === "none" ? null : tabOf(image.src);
        layer.hidden = !tab || showsSeveral(tab, image.src);
        if (!layer.hidden) showMarks(layer.firstChild, tab, image.src, true);
    }

    function equipViewer(viewer, image) {
        const layer = document.createElement("div");
        layer.className = "steer-fabric-layer steer-fabric-viewer";
        layer.hidden = true;
        layer.appendChild(makeMarks(() => ({tab: tabOf(image.src), url: image.src})));
        viewer.appendChild(layer);
        for (const element of [viewer, image]) {
            new MutationObserver(schedule).observe(element, {attributes: true, attributeFilter: ["src", "style"]});
        }
        viewer.addEventListener("keydown", event => { // the viewer's own keys are the arrows, S and Escape
            if (layer.hidden || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
            const kind = Object.keys(KINDS).find(name => KINDS[name].key === event.key.toLowerCase());
            if (kind) layer.querySelector(`[data-fabric-kind="${kind}"]`).click();
        }, true);
        return layer;
    }

    /* ---- the box's header ---- */

    /** Says what is in the box while it is closed. */
    function redrawHeader(tab) {
        const header = root().querySelector(`#fabric_${tab.name} > .label-wrap > span`);
        if (!header) return;
        const counts = Object.keys(KINDS).map(kind => [idsIn(tab, kind).filter(Boolean).length, KINDS[kind].emoji]).filter(([count]) => count);
        const isOff = root().querySelector(`#fabric_${tab.name}-checkbox input`)?.checked === false;
        const text = counts.map(pair => pair.join(" ")).join(", ") + (isOff ? ", off" : "");
        header.dataset.steerFabric = counts.length ? text : "👍 more like this, 👎 less like that";
    }

    /* ---- start ---- */

    window.fabricPage.marks = {make: makeMarks, show: showMarks, others};

    onRedraw(() => Object.values(tabs).forEach(redrawGallery));
    onRedraw(() => Object.values(tabs).forEach(redrawHeader));
    onRedraw(redrawViewer);
    for (const name of ["scroll", "resize"]) window.addEventListener(name, schedule, {capture: true, passive: true});
    for (const name of ["focusin", "transitionend"]) document.addEventListener(name, schedule, {passive: true});
    document.addEventListener("change", schedule, {passive: true}); // of the box's switch
    document.addEventListener("pointerover", event => {
        pointedAt = event.target;
        schedule();
    }, {passive: true});
    schedule();
})();
