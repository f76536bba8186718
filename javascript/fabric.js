/*
 * FABRIC in the browser: the two lists of feedback images, and how images get onto them.
 *
 * `fabricPage` is for the other files: fabric_marks.js puts 👍 and 👎 on images, fabric_memory.js restores the lists after a reload and
 * shares them between the tabs, fabric_tray.js has a tray below the gallery. Hosts load the four in this order.
 *
 * The browser reads an image's bytes itself and sends them through a hidden textbox (see lib_methods/fabric/inbox.py); it never
 * names a file. Messages go one after the other, each with a nonce that the answer repeats, so that quick clicks are not lost.
 * Only DOM that gradio 3, 4 and 6 share is relied on: images in the gallery, textareas in textboxes, bubbling "input" events.
 */
window.fabricPage = (function () {
    "use strict";

    const ANSWER_TIMEOUT_MS = 60000;
    const LARGEST_UPLOAD = 6 * 2 ** 20; // bytes; hosts cut off messages beyond 16 MB
    const UNREADABLE = "This file cannot be read as an image.";
    const MOST_NAMES = 6; // in one message
    const LARGEST_SIDE = 2048; // pixels, when a larger upload must be made smaller

    const tabs = {};
    for (const name of ["txt2img", "img2img"]) {
        tabs[name] = {name: name, queue: [], busy: false, ids: new Map(), focus: null, uploads: {likes: 0, dislikes: 0}};
    }

    function root() {
        return typeof gradioApp === "function" ? gradioApp() : document;
    }

    function textOf(tab, part) {
        return root().querySelector(`#fabric_${tab.name}_${part} textarea, #fabric_${tab.name}_${part} input`);
    }

    /* ---- messages to Python ---- */

    /**
     * Ask Python for one action; resolves to its answer, or null if there is none. Errors are shown to the user, or passed to
     * `tell` if several actions belong together.
     */
    function send(tab, action, tell = say) {
        return new Promise(resolve => {
            tab.queue.push({action, resolve, tell});
            pump(tab);
        });
    }

    async function pump(tab) {
        if (tab.busy || !tab.queue.length) return;
        tab.busy = true;
        const {action, resolve, tell} = tab.queue.shift();
        let answer = null;
        try {
            answer = await exchange(tab, action);
            if (answer.note) tell(answer.note);
        } catch (error) {
            tell(error.message);
        }
        resolve(answer);
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
            return JSON.parse(outbox.value);
        }
        throw new Error("The server did not answer. Check that it is still running.");
    }

    /** Shows a message wherever the user is looking. */
    function say(sentence) {
        let box = document.querySelector(".steer-toast");
        if (!box) {
            box = document.createElement("div");
            box.className = "steer-toast";
            box.setAttribute("role", "alert");
            document.body.appendChild(box);
        }
        box.textContent = sentence;
        clearTimeout(box.timer);
        box.timer = setTimeout(() => box.remove(), 8000);
    }

    /* ---- images ---- */

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

    /** Put a file on a list; resolves to the image's id, or null if it failed and `tell` was called. */
    async function addBlob(tab, kind, blob, from = "file", tell = say) {
        try {
            const small = blob.size > LARGEST_UPLOAD ? await smaller(blob) : blob;
            const answer = await send(tab, {do: "add", list: kind, image: await asDataUrl(small), from: from}, tell);
            return answer && answer.ids[0];
        } catch {
            tell(UNREADABLE);
            return null;
        }
    }

    /** Put an image of the page on a list. */
    async function addUrl(tab, kind, url) {
        let id = tab.ids.get(url);
        if (id) {
            await send(tab, {do: "add", list: kind, image: id});
            return;
        }
        let blob = null;
        try {
            const response = await fetch(url);
            if (response.ok) blob = await response.blob();
        } catch { /* reported below */ }
        if (!blob) {
            say("This image could not be fetched. Save it, then add the file with + Add.");
            return;
        }
        id = await addBlob(tab, kind, blob, "page");
        if (id) tab.ids.set(url, id);
    }

    /* ---- single images and grids ---- */

    const infos = {}; // by tab: {text, value} of the host's information on the gallery's images

    function infoOf(tab) {
        const field = root().querySelector(`#generation_info_${tab.name} textarea`);
        const text = field ? field.value : "";
        if (!infos[tab.name] || infos[tab.name].text !== text) {
            let value = null;
            try {
                value = JSON.parse(text);
            } catch { /* no images yet */ }
            infos[tab.name] = {text, value};
        }
        return infos[tab.name].value;
    }

    /** Whether image number `index` of a job shows several images: a grid, or the strip of a method. */
    function isComposite(info, index) {
        if (!info || index < 0) return false;
        if (index < (info.index_of_first_image || 0)) return true;
        const text = (info.infotexts || [])[index];
        return typeof text === "string" && (/(^|, )(Script: X\/Y\/Z plot|[XYZ] Values: )/m.test(text) || !/\bSteps: \d/.test(text));
    }

    /** Whether an image in the tab's gallery shows several images. */
    function showsSeveral(tab, url) {
        const gallery = root().querySelector(`#${tab.name}_gallery`);
        const strip = gallery && (gallery.querySelector(".thumbnails") || gallery.querySelector(".grid-container") || gallery);
        const urls = strip ? [...strip.querySelectorAll("img")].map(image => image.src) : [];
        return isComposite(infoOf(tab), urls.indexOf(url));
    }

    function idsIn(tab, kind) {
        const text = textOf(tab, kind);
        return text ? text.value.split(/\s+/).map(word => word.split(":")[0]) : [];
    }

    /* ---- redrawn when the page has changed ---- */

    const redraws = [];
    let scheduled = false;

    function onRedraw(callback) {
        redraws.push(callback);
    }

    function schedule() {
        if (scheduled) return;
        scheduled = true;
        requestAnimationFrame(() => {
            scheduled = false;
            redraws.forEach(redraw => redraw());
            showUploads();
            restoreFocus();
        });
    }

    /* ---- the lists ---- */

    function placeOf(element) {
        const panel = element && element.closest ? element.closest(".steer-fabric-panel") : null;
        const board = panel && panel.closest(".steer-fabric-board");
        const tab = board && tabs[board.dataset.fabricTab];
        if (!tab) return null;
        const card = element.closest(".steer-fabric-card");
        return {tab: tab, panel: panel, kind: panel.dataset.fabricList, id: card && card.dataset.fabricId};
    }

    /** Put files on a list one by one, then name those that could not be added. */
    async function addFiles({tab, kind}, files) {
        const chosen = [...files];
        const refused = new Map(); // reason -> names
        tab.uploads[kind] += 1;
        schedule();
        for (const file of chosen) {
            let sentence = file.type && !file.type.startsWith("image/") ? UNREADABLE : "";
            if (!sentence) sentence = await addBlob(tab, kind, file, "file", note => { sentence = note; }) ? "" : sentence || UNREADABLE;
            if (/cannot be read|damaged/.test(sentence)) sentence = UNREADABLE;
            if (sentence) refused.set(sentence, [...(refused.get(sentence) || []), file.name]);
        }
        tab.uploads[kind] -= 1;
        schedule();
        if (refused.size) say([...refused].map(([why, names]) => refusal(why, names, chosen.length)).join(" "));
    }

    function refusal(why, names, count) {
        if (count === 1) return why === UNREADABLE ? `${names[0]} cannot be read as an image.` : why;
        const some = names.length > MOST_NAMES ? [...names.slice(0, MOST_NAMES), `${names.length - MOST_NAMES} more`] : names;
        const what = `${names.length} of ${count} images could not be`;
        return why === UNREADABLE ? `${what} read: ${some.join(", ")}.` : `${what} added: ${some.join(", ")}. ${why}`;
    }

    /** The dialog belongs to an input that stays: the lists may be redrawn meanwhile, and would take its files with them. */
    function pickFiles(place) {
        const picker = document.createElement("input");
        picker.type = "file";
        picker.multiple = true;
        picker.accept = "image/*";
        picker.className = "steer-fabric-picker";
        picker.addEventListener("change", event => {
            event.stopPropagation();
            picker.remove();
            addFiles(place, picker.files);
        });
        document.querySelectorAll(".steer-fabric-picker").forEach(old => old.remove());
        document.body.append(picker);
        picker.click();
    }

    function showUploads() {
        for (const panel of root().querySelectorAll(".steer-fabric-panel")) {
            const place = placeOf(panel);
            if (place) panel.classList.toggle("steer-fabric-busy", place.tab.uploads[place.kind] > 0);
        }
    }

    /** The lists are redrawn after each change: keep the keyboard focus. */
    function restoreFocus() {
        for (const tab of Object.values(tabs)) {
            if (!tab.focus || tab.busy) continue;
            const {kind, id} = tab.focus;
            tab.focus = null;
            const board = root().querySelector(`.steer-fabric-board[data-fabric-tab="${tab.name}"]`);
            const card = board && board.querySelector(`[data-fabric-list="${kind}"] [data-fabric-id="${id}"] .steer-fabric-weight input`);
            if (card && document.activeElement === document.body) card.focus();
        }
    }

    document.addEventListener("click", event => {
        const place = placeOf(event.target);
        if (!place) return;
        if (event.target.closest(".steer-fabric-upload")) {
            event.preventDefault();
            pickFiles(place);
        }
        if (event.target.closest(".steer-fabric-remove")) send(place.tab, {do: "remove", list: place.kind, id: place.id});
        if (event.target.closest(".steer-fabric-clear")) send(place.tab, {do: "clear", list: place.kind});
    });

    document.addEventListener("change", event => {
        const place = placeOf(event.target);
        if (!place) return;
        if (event.target.type === "file") {
            addFiles(place, event.target.files);
        } else if (event.target.closest(".steer-fabric-weight")) {
            place.tab.focus = place;
            send(place.tab, {do: "weight", list: place.kind, id: place.id, weight: event.target.valueAsNumber});
        }
    }, true);

    document.addEventListener("dragover", event => {
        const place = placeOf(event.target);
        document.querySelectorAll(".steer-fabric-panel.steer-fabric-over").forEach(panel => panel.classList.remove("steer-fabric-over"));
        if (!place) return;
        event.preventDefault();
        event.stopPropagation();
        event.dataTransfer.dropEffect = "copy";
        place.panel.classList.add("steer-fabric-over");
    }, true);

    document.addEventListener("drop", event => {
        const place = placeOf(event.target);
        if (!place) return;
        event.preventDefault();
        event.stopPropagation();
        place.panel.classList.remove("steer-fabric-over");
        const page = new DOMParser().parseFromString(event.dataTransfer.getData("text/html"), "text/html");
        const dragged = page.querySelector("img");
        if (dragged && dragged.src) addUrl(place.tab, place.kind, dragged.src); // from a page: the file itself, not a copy
        else addFiles(place, event.dataTransfer.files);
    }, true);

    document.addEventListener("paste", event => {
        const typing = document.activeElement && document.activeElement.matches("textarea, input:not([type=file])");
        const place = placeOf(document.activeElement) || (typing ? null : placeOf(document.querySelector(".steer-fabric-panel:hover")));
        const files = event.clipboardData ? [...event.clipboardData.files] : [];
        if (!place || !files.length) return;
        event.preventDefault();
        event.stopPropagation();
        addFiles(place, files);
    }, true);

    if (typeof onAfterUiUpdate === "function") onAfterUiUpdate(schedule);
    else new MutationObserver(schedule).observe(document.documentElement, {childList: true, subtree: true});

    return {tabs, root, textOf, send, addUrl, idsIn, isComposite, showsSeveral, schedule, onRedraw};
})();
