/*
 * What the tabs of jobs share in the browser: looking at the progress while a tab is open, and filling boxes of other tabs.
 *
 * Python keeps the state; the page only presses a hidden button, and so finds a running job again after a reload.
 */
window.steerJobs = (function () {
    "use strict";

    const EVERY_MS = 1500;
    const UNDO_MS = 15000;

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

    /** Puts a text before what a tab's prompt has; returns what takes it back. */
    function setPrompt(tab, text) {
        const box = part(`#${tab}_prompt textarea`);
        if (!box || box.value.includes(text)) return () => {};
        const [before, trimmed] = [box.value, box.value.trim()];
        const fill = (value) => {
            box.value = value;
            updateInput(box);
        };
        fill(trimmed ? `${text}, ${trimmed}` : text); // keep the prompt
        return () => fill(before);
    }

    /** Says for a while what was done, with a button that takes it back. */
    function offerUndo(sentence, undo) {
        document.querySelector(".steer-undo")?.remove();
        const box = document.createElement("div");
        box.className = "steer-toast steer-undo";
        box.setAttribute("role", "status");
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = "Undo";
        button.addEventListener("click", () => {
            box.remove();
            undo();
        });
        box.append(sentence, button);
        document.body.append(box);
        setTimeout(() => box.remove(), UNDO_MS);
    }

    return {part, press, follow, setPrompt, offerUndo};
})();
