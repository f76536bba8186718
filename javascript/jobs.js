/*
 * What the tabs of jobs share in the browser: looking at the progress while a tab is open, and filling boxes of other tabs.
 *
 * Python keeps the state; the page only presses a hidden button, and so finds a running job again after a reload.
 */
window.steerJobs = (function () {
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

    /** Presses the button `look` now and then while the element `panel` is on the screen. isBusy: whether to wait. */
    function follow(panel, look, isBusy = () => false) {
        function lookAgain() {
            const shown = part(`#${panel}`);
            if (shown && shown.offsetParent && !document.hidden && !isBusy()) press(look);
        }

        function start() {
            setInterval(lookAgain, EVERY_MS);
            if (typeof onUiTabChange === "function") onUiTabChange(lookAgain);
        }

        if (typeof onUiLoaded === "function") onUiLoaded(start);
        else start();
    }

    /** Puts a text before what a tab's prompt has. */
    function setPrompt(tab, text) {
        const box = part(`#${tab}_prompt textarea`);
        if (!box || box.value.includes(text)) return;
        const before = box.value.trim();
        box.value = before ? `${text}, ${before}` : text; // keep the prompt
        updateInput(box);
    }

    return {part, press, follow, setPrompt};
})();
