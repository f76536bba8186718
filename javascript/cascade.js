/* The Cascade tab in the browser: which images are ticked, and sending them to other tabs. */
window.cascadePage = (function () {
    "use strict";

    const TAKING_MS = 5000; // until a box that was cleared can take an image
    const ticked = new Set();

    function boxes() {
        return [...(steerJobs.part("#cascade_sheet")?.querySelectorAll(".steer-cascade-tick") || [])];
    }

    /** The sheet is redrawn as images come: what was ticked stays. */
    function redraw() {
        for (const box of boxes()) box.checked = ticked.has(box.value);
    }

    function note(event) {
        const box = event.target;
        if (!(box instanceof Element) || !box.matches(".steer-cascade-tick")) return;
        if (box.checked) ticked.add(box.value);
        else ticked.delete(box.value);
        const kept = steerJobs.part("#cascade_ticked textarea");
        kept.value = boxes().filter(each => each.checked).map(each => each.value).join("\n");
        kept.dispatchEvent(new Event("input", {bubbles: true}));
    }

    function pause(milliseconds) {
        return new Promise(done => setTimeout(done, milliseconds));
    }

    /** Gives an image to a box of the host as if it were chosen there. */
    async function put(selector, blob) {
        const clear = steerJobs.part(`${selector} button[aria-label="Clear"], ${selector} button[aria-label="Remove Image"]`);
        if (clear) clear.click();
        for (let wait = 0; wait < TAKING_MS; wait += 50) {
            const input = steerJobs.part(`${selector} input[type=file]`);
            if (input) {
                const held = new DataTransfer();
                held.items.add(new File([blob], "cascade.png", {type: "image/png"}));
                input.files = held.files;
                input.dispatchEvent(new Event("change", {bubbles: true}));
                return;
            }
            await pause(50);
        }
    }

    /** Sends images to "img2img" or "extras", which take the first one, or to FABRIC's "likes". */
    async function send(target, parcel) {
        if (!parcel) return [];
        const {images, prompt} = JSON.parse(parcel);
        if (target === "likes") {
            for (const url of images) await fabricPage.addUrl(fabricPage.tabs.txt2img, "likes", url);
            switch_to_txt2img();
            return [];
        }
        const blob = await (await fetch(images[0])).blob();
        if (target === "img2img") {
            switch_to_img2img();
            steerJobs.setPrompt("img2img", prompt);
        } else {
            switch_to_extras();
        }
        await pause(200); // the tab's boxes may only now be on the page
        await put(`#${target}_image`, blob);
        return [];
    }

    /** Opens the tab with a trained cascade and the prompt of its subject; the server fills both in. */
    function take(usage) {
        const kept = steerJobs.part("#cascade_taken textarea, #cascade_taken input");
        kept.value = usage;
        kept.dispatchEvent(new Event("input", {bubbles: true}));
        setTimeout(() => steerJobs.press("cascade_take"), 200); // gradio hears of the text first
        const tabs = [...gradioApp().querySelectorAll("#tabs > .tab-nav > button, #tabs button[role=tab]")];
        tabs.find(tab => tab.textContent.trim() === "Cascade")?.click();
        return [];
    }

    function start() {
        document.addEventListener("change", note, true);
        steerJobs.follow("cascade_panel", "cascade_poll");
        if (typeof onAfterUiUpdate === "function") onAfterUiUpdate(redraw);
    }

    onUiLoaded(start);
    return {send, take};
})();
