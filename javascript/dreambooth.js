/*
 * DreamBooth in the browser: polls the progress of training every two seconds while its tab is open, and puts the result to use.
 *
 * Python keeps the state (lib_methods/dreambooth/tab/handlers.py); the page only presses a hidden button, and so finds a running job again
 * after a reload.
 */
window.dreamboothPage = (function () {
    "use strict";

    const EVERY_MS = 1500;

    function root() {
        return typeof gradioApp === "function" ? gradioApp() : document;
    }

    function part(selector) {
        return root().querySelector(selector);
    }

    /** A button of gradio 3 is the element itself, later ones may be wrapped. */
    function press(id) {
        const found = part(`#${id}`);
        const button = found && (found.matches("button") ? found : found.querySelector("button"));
        if (button) button.click();
        return Boolean(button);
    }

    function isOpen() {
        const panel = part("#dreambooth_panel");
        return Boolean(panel && panel.offsetParent) && !document.hidden;
    }

    function lookAgain() {
        if (isOpen() && !dreamboothPhotos.uploading()) press("dreambooth_poll");
    }

    function setPrompt(text) {
        const box = part("#txt2img_prompt textarea");
        if (!box || box.value.includes(text)) return;
        const before = box.value.trim();
        box.value = before ? `${text}, ${before}` : text; // what is there stays
        updateInput(box);
    }

    /** Fill the prompt, choose the checkpoint if the result is one, and go to txt2img. */
    function use(usage) {
        if (!usage) return [];
        const {prompt, checkpoint} = JSON.parse(usage);
        setPrompt(prompt);
        press("refresh_sd_model_checkpoint");
        if (checkpoint && typeof selectCheckpoint === "function") selectCheckpoint(checkpoint);
        if (typeof switch_to_txt2img === "function") switch_to_txt2img();
        return [];
    }

    function start() {
        setInterval(lookAgain, EVERY_MS);
        if (typeof onUiTabChange === "function") onUiTabChange(lookAgain);
    }

    if (typeof onUiLoaded === "function") onUiLoaded(start);
    else start();
    return {use};
})();
