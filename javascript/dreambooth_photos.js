/*
 * Keeps DreamBooth's photo uploads from getting lost.
 *
 * gradio 3 (AUTOMATIC1111) drops an upload when the answer to any other call arrives in the middle of it: the box keeps saying
 * "Uploading..." and Python never gets the files. While photos upload, the tab therefore sends no requests, and files lost
 * to an earlier answer are given to the box again.
 */
window.dreamboothPhotos = (function () {
    "use strict";

    const BOXES = ["#dreambooth_photos", "#dreambooth_class_photos", "#dreambooth_second_photos"];
    const TAKING_MS = 5000; // from the choice to the list of names, on a slow machine
    const LONGEST_MS = 600000;
    const MOST_TRIES = 10;

    let box = BOXES[0]; // the one receiving files
    let began = null; // when the uploading files were chosen, in milliseconds since the page's start
    let files = [];
    let tries = 0;

    function part(selector) {
        return (typeof gradioApp === "function" ? gradioApp() : document).querySelector(selector);
    }

    function isInside(event, selector) {
        const place = part(selector);
        return Boolean(place && event.target instanceof Node && place.contains(event.target));
    }

    function pause(milliseconds) {
        return new Promise((done) => setTimeout(done, milliseconds));
    }

    function noteChoice(event) {
        const given = event.type === "drop" ? event.dataTransfer : event.target;
        const chosen = BOXES.find((selector) => isInside(event, selector));
        if (!chosen || !given || !given.files || !given.files.length) return;
        box = chosen;
        began = performance.now();
        files = Array.from(given.files);
        tries = event.isTrusted ? 1 : tries + 1; // our own events are not
    }

    async function noteUploads(entries) {
        if (began === null || !entries.some((entry) => /\/upload(\?|$)/.test(entry.name))) return;
        const choice = began;
        await pause(300); // the page needs a moment to register the files
        if (began !== choice) return;
        if (isLost() && tries < MOST_TRIES) await giveAgain();
        else began = null;
    }

    /** Names without a link: gradio has no file for them. */
    function isLost() {
        return Boolean(part(`${box} .file-preview`)) && !part(`${box} .file-preview a[href]`);
    }

    async function giveAgain() {
        const clear = part(`${box} button[aria-label="Clear"]`);
        if (clear) clear.click();
        let input = null;
        for (let wait = 0; wait < TAKING_MS && !input; wait += 50) {
            await pause(50);
            input = part(`${box} input[type=file]`);
        }
        if (!input) {
            began = null;
            return;
        }
        const held = new DataTransfer();
        files.forEach((file) => held.items.add(file));
        input.files = held.files;
        input.dispatchEvent(new Event("change", {bubbles: true}));
    }

    function uploading() {
        if (began === null) return false;
        const passed = performance.now() - began;
        const noneTaken = passed > TAKING_MS && part(`${box} input[type=file]`);
        return !noneTaken && passed < LONGEST_MS;
    }

    /** Waits until no photo is uploading. */
    async function uploaded() {
        while (uploading()) await pause(100);
    }

    function trainLater(event) {
        if (!isInside(event, "#dreambooth_train") || !uploading()) return;
        event.preventDefault();
        event.stopImmediatePropagation();
        uploaded().then(() => event.target.click());
    }

    function start() {
        for (const kind of ["change", "drop"]) document.addEventListener(kind, noteChoice, true);
        document.addEventListener("click", trainLater, true);
        new PerformanceObserver((list) => noteUploads(list.getEntries())).observe({type: "resource"});
    }

    if (!String((window.gradio_config || {}).version || "").startsWith("3.")) return {uploading: () => false, uploaded: async () => {}};
    start();
    return {uploading, uploaded};
})();
