/*
 * FABRIC in the browser: 👍 and 👎 on the pictures of the result gallery, and the two lists that they fill.
 *
 * The browser reads a picture's bytes itself and sends them through a hidden textbox (see lib_methods/fabric/inbox.py); it never
 * names a file. Messages go one after the other, each with a nonce that the answer repeats, so that quick clicks are not lost.
 * Only DOM that gradio 3, 4 and 6 share is relied on: images in the gallery, textareas in textboxes, bubbling "input" events.
 */
(function () {
    "use strict";

    const KINDS = {
        likes: {emoji: "👍", add: "Like: the next pictures lean towards this one", remove: "Liked. Click again to take it back"},
        dislikes: {emoji: "👎", add: "Dislike: the next pictures lean away from this one", remove: "Disliked. Click again to take it back"},
    };
    const ANSWER_TIMEOUT_MS = 60000;
    const LARGEST_UPLOAD = 6 * 2 ** 20; // bytes; hosts cut off messages beyond 16 MB
    const LARGEST_SIDE = 2048; // pixels, when a larger upload has to be made smaller
    const SMALLEST_PICTURE = 20; // pixels on the screen; anything smaller gets no buttons
    const TINY_PICTURE = 70; // below this width, the buttons float above the picture while it is pointed at

    const tabs = {};
    for (const name of ["txt2img", "img2img"]) {
        tabs[name] = {name: name, queue: [], busy: false, ids: new Map(), marks: new Map(), gallery: null, focus: null};
    }

    function root() {
        return typeof gradioApp === "function" ? gradioApp() : document;
    }

    function textOf(tab, part) {
        return root().querySelector(`#fabric_${tab.name}_${part} textarea, #fabric_${tab.name}_${part} input`);
    }

    /* ---- messages to Python ---- */

    /** Ask Python for one action; resolves to the picture's id, or null where it failed (the user has been told). */
    function send(tab, action) {
        return new Promise(resolve => {
            tab.queue.push({action, resolve});
            pump(tab);
        });
    }

    async function pump(tab) {
        if (tab.busy || !tab.queue.length) return;
        tab.busy = true;
        const {action, resolve} = tab.queue.shift();
        let id = null;
        try {
            id = await exchange(tab, action);
        } catch (error) {
            say(error.message);
        }
        resolve(id);
        tab.busy = false;
        schedule();
        pump(tab);
    }

    async function exchange(tab, action) {
        const inbox = textOf(tab, "inbox");
        if (!inbox) throw new Error("FABRIC is not on this page. Reload the page.");
        const nonce = `${Date.now()}-${Math.random()}`;
        inbox.value = JSON.stringify({nonce: nonce, actions: [action]});
        inbox.dispatchEvent(new Event("input", {bubbles: true}));
        for (const end = Date.now() + ANSWER_TIMEOUT_MS; Date.now() < end;) {
            await new Promise(resume => setTimeout(resume, 40));
            const outbox = textOf(tab, "outbox");
            if (!outbox || !outbox.value.includes(nonce)) continue;
            const answer = JSON.parse(outbox.value);
            if (answer.note) say(answer.note);
            return answer.ids[0];
        }
        throw new Error("The server did not answer. Is it still running?");
    }

    /** A sentence for the user, wherever they are looking. */
    function say(sentence) {
        let box = document.querySelector(".fabric-toast");
        if (!box) {
            box = document.createElement("div");
            box.className = "fabric-toast";
            box.setAttribute("role", "alert");
            document.body.appendChild(box);
        }
        box.textContent = sentence;
        clearTimeout(box.timer);
        box.timer = setTimeout(() => box.remove(), 8000);
    }

    /* ---- pictures ---- */

    function asDataUrl(blob) {
        return new Promise((resolve, reject) => {
            const reader = new FileReader();
            reader.onload = () => resolve(reader.result);
            reader.onerror = () => reject(reader.error);
            reader.readAsDataURL(blob);
        });
    }

    async function smaller(blob) {
        const bitmap = await createImageBitmap(blob);
        const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
        const canvas = document.createElement("canvas");
        canvas.width = Math.max(1, Math.round(bitmap.width * scale));
        canvas.height = Math.max(1, Math.round(bitmap.height * scale));
        canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
        const png = await new Promise(resolve => canvas.toBlob(resolve, "image/png"));
        if (png.size <= LARGEST_UPLOAD) return png;
        return new Promise(resolve => canvas.toBlob(resolve, "image/jpeg", 0.95));
    }

    async function addBlob(tab, kind, blob) {
        try {
            const small = blob.size > LARGEST_UPLOAD ? await smaller(blob) : blob;
            return await send(tab, {do: "add", list: kind, image: await asDataUrl(small)});
        } catch {
            say("This file cannot be read as a picture.");
            return null;
        }
    }

    async function addUrl(tab, kind, url) {
        let id = tab.ids.get(url);
        if (id) return send(tab, {do: "add", list: kind, image: id});
        let blob = null;
        try {
            const response = await fetch(url);
            if (response.ok) blob = await response.blob();
        } catch { /* told below */ }
        if (!blob) {
            say("This picture cannot be fetched. Save it and add the file.");
            return null;
        }
        id = await addBlob(tab, kind, blob);
        if (id) tab.ids.set(url, id);
        return id;
    }

    function idsIn(tab, kind) {
        const text = textOf(tab, kind);
        return text ? text.value.split(/\s+/).map(word => word.split(":")[0]) : [];
    }

    /* ---- 👍 and 👎 on the result gallery ---- */

    function makeMarks(tab, image) {
        const bar = document.createElement("div");
        bar.className = "fabric-marks";
        for (const kind of Object.keys(KINDS)) {
            const button = document.createElement("button");
            button.type = "button";
            button.className = "fabric-mark";
            button.dataset.fabricKind = kind;
            button.textContent = KINDS[kind].emoji;
            button.addEventListener("click", async event => {
                event.preventDefault();
                event.stopPropagation();
                const marked = button.getAttribute("aria-pressed") === "true";
                bar.classList.add("fabric-busy");
                if (marked) await send(tab, {do: "remove", list: kind, id: tab.ids.get(image.src)});
                else await addUrl(tab, kind, image.src);
                bar.classList.remove("fabric-busy");
            });
            // gallery and host have keys of their own (arrows, Escape, Enter): not while a mark has the focus
            button.addEventListener("keydown", event => event.key !== "Escape" && event.stopPropagation());
            bar.appendChild(button);
        }
        return bar;
    }

    /** Whether the picture can be seen: large enough, on the screen, and not behind another one. */
    function visible(image, layer, box) {
        if (box.width < SMALLEST_PICTURE || box.height < SMALLEST_PICTURE) return false;
        const x = box.left + box.width / 2;
        const y = box.top + box.height / 2;
        if (x < 0 || y < 0 || x >= innerWidth || y >= innerHeight) return false;
        const top = document.elementsFromPoint(x, y).find(element => !layer.contains(element));
        return Boolean(top) && (top.contains(image) || image.contains(top));
    }

    /** Where the picture itself is within its element, which may be wider or taller ("object-fit: contain"). */
    function pictureBox(image) {
        const box = image.getBoundingClientRect();
        if (getComputedStyle(image).objectFit !== "contain" || !image.naturalWidth) return box;
        const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
        const width = image.naturalWidth * scale;
        const height = image.naturalHeight * scale;
        return new DOMRect(box.left + (box.width - width) / 2, box.top + (box.height - height) / 2, width, height);
    }

    function refresh(tab) {
        const gallery = root().querySelector(`#${tab.name}_gallery`);
        if (!gallery) return;
        if (tab.gallery !== gallery) watch(tab, gallery);
        let layer = gallery.querySelector(":scope > .fabric-layer");
        if (!layer) {
            layer = document.createElement("div");
            layer.className = "fabric-layer";
            gallery.appendChild(layer);
            tab.marks.clear();
        }
        const frame = layer.getBoundingClientRect();
        const lists = {likes: idsIn(tab, "likes"), dislikes: idsIn(tab, "dislikes")};
        const seen = new Set();
        for (const image of gallery.querySelectorAll("img")) {
            const box = pictureBox(image);
            if (layer.contains(image) || !image.complete || !visible(image, layer, box)) continue;
            seen.add(image);
            if (!tab.marks.has(image)) {
                tab.marks.set(image, makeMarks(tab, image));
                layer.appendChild(tab.marks.get(image));
            }
            const bar = tab.marks.get(image);
            const tiny = box.width < TINY_PICTURE;
            bar.classList.toggle("fabric-tiny", tiny);
            bar.classList.toggle("fabric-show", tiny && pointedAt !== null && (holds(pointedAt, image) || bar.contains(pointedAt)));
            bar.classList.toggle("fabric-small", !tiny && box.width < 130);
            bar.style.left = `${(tiny ? box.left + box.width / 2 : box.left) - frame.left}px`;
            bar.style.top = `${(tiny ? box.top : box.bottom) - frame.top}px`;
            for (const button of bar.children) {
                const kind = button.dataset.fabricKind;
                const marked = lists[kind].includes(tab.ids.get(image.src));
                button.setAttribute("aria-pressed", String(marked));
                button.title = marked ? KINDS[kind].remove : KINDS[kind].add;
                button.setAttribute("aria-label", button.title);
            }
        }
        for (const [image, bar] of tab.marks) {
            if (!seen.has(image)) {
                bar.remove();
                tab.marks.delete(image);
            }
        }
    }

    function watch(tab, gallery) {
        tab.gallery = gallery;
        new MutationObserver(changes => {
            const foreign = change => !(change.target.closest && change.target.closest(".fabric-layer"));
            if (changes.some(foreign)) schedule();
        }).observe(gallery, {childList: true, subtree: true, attributes: true, attributeFilter: ["src", "class", "style"]});
        gallery.addEventListener("load", schedule, true);
        new ResizeObserver(schedule).observe(gallery);
    }

    /** Whether the element is the picture or the button that it fills. */
    function holds(element, image) {
        return element === image || (element.contains(image) && element.querySelectorAll("img").length === 1);
    }

    let scheduled = false;
    let pointedAt = null;

    function schedule() {
        if (scheduled) return;
        scheduled = true;
        requestAnimationFrame(() => {
            scheduled = false;
            Object.values(tabs).forEach(refresh);
            restoreFocus();
        });
    }

    /* ---- the lists ---- */

    function placeOf(element) {
        const panel = element && element.closest ? element.closest(".fabric-panel") : null;
        const board = panel && panel.closest(".fabric-board");
        const tab = board && tabs[board.dataset.fabricTab];
        if (!tab) return null;
        const card = element.closest(".fabric-card");
        return {tab: tab, panel: panel, kind: panel.dataset.fabricList, id: card && card.dataset.fabricId};
    }

    async function addFiles(place, files) {
        const pictures = [...files].filter(file => file.type.startsWith("image/"));
        if (!pictures.length) say("There is no picture among these files.");
        place.panel.classList.add("fabric-busy");
        for (const file of pictures) await addBlob(place.tab, place.kind, file);
        place.panel.classList.remove("fabric-busy");
    }

    /** The lists are drawn anew after each change: keep the keyboard where it was. */
    function restoreFocus() {
        for (const tab of Object.values(tabs)) {
            if (!tab.focus || tab.busy) continue;
            const {kind, id} = tab.focus;
            tab.focus = null;
            const board = root().querySelector(`.fabric-board[data-fabric-tab="${tab.name}"]`);
            const card = board && board.querySelector(`[data-fabric-list="${kind}"] [data-fabric-id="${id}"] .fabric-weight input`);
            if (card && document.activeElement === document.body) card.focus();
        }
    }

    document.addEventListener("click", event => {
        const place = placeOf(event.target);
        if (!place) return;
        if (event.target.closest(".fabric-remove")) send(place.tab, {do: "remove", list: place.kind, id: place.id});
        if (event.target.closest(".fabric-clear")) send(place.tab, {do: "clear", list: place.kind});
    });

    document.addEventListener("change", event => {
        const place = placeOf(event.target);
        if (!place) return;
        if (event.target.type === "file") {
            addFiles(place, event.target.files);
        } else if (event.target.closest(".fabric-weight")) {
            place.tab.focus = place;
            send(place.tab, {do: "weight", list: place.kind, id: place.id, weight: event.target.valueAsNumber});
        }
    }, true);

    document.addEventListener("dragover", event => {
        const place = placeOf(event.target);
        document.querySelectorAll(".fabric-panel.fabric-over").forEach(panel => panel.classList.remove("fabric-over"));
        if (!place) return;
        event.preventDefault();
        event.stopPropagation();
        event.dataTransfer.dropEffect = "copy";
        place.panel.classList.add("fabric-over");
    }, true);

    document.addEventListener("drop", event => {
        const place = placeOf(event.target);
        if (!place) return;
        event.preventDefault();
        event.stopPropagation();
        place.panel.classList.remove("fabric-over");
        const page = new DOMParser().parseFromString(event.dataTransfer.getData("text/html"), "text/html");
        const dragged = page.querySelector("img");
        if (dragged && dragged.src) addUrl(place.tab, place.kind, dragged.src); // from a page: the file itself, not a copy
        else addFiles(place, event.dataTransfer.files);
    }, true);

    document.addEventListener("paste", event => {
        const typing = document.activeElement && document.activeElement.matches("textarea, input:not([type=file])");
        const place = placeOf(document.activeElement) || (typing ? null : placeOf(document.querySelector(".fabric-panel:hover")));
        const files = event.clipboardData ? [...event.clipboardData.files] : [];
        if (!place || !files.length) return;
        event.preventDefault();
        event.stopPropagation();
        addFiles(place, files);
    }, true);

    /* ---- start ---- */

    for (const name of ["scroll", "resize"]) window.addEventListener(name, schedule, {capture: true, passive: true});
    for (const name of ["focusin", "transitionend"]) document.addEventListener(name, schedule, {passive: true});
    document.addEventListener("pointerover", event => {
        pointedAt = event.target;
        schedule();
    }, {passive: true});
    if (typeof onAfterUiUpdate === "function") onAfterUiUpdate(schedule);
    else new MutationObserver(schedule).observe(document.documentElement, {childList: true, subtree: true});
    schedule();
})();
