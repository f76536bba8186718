/*
 * Updates the methods' status lines when the loaded checkpoint changes or an image comes or goes, which Python cannot see.
 *
 * Boxes that the settings leave out are hidden (lib_methods/hosts/settings.py) unless they are switched on.
 *
 * A line may offer another checkpoint (`status_html`): its button chooses that.
 *
 * A method has hidden buttons for it (lib_methods/webui/gradio_compat.py): ".steer-recheck" asks for its line again,
 * ".steer-look" looks at the tab's boxes in the browser, so that no image travels.
 */
window.steerStatus = (function () {
    "use strict";

    const DRAWN_MS = 300; // from a click on a tab to its boxes on the screen, mostly
    const MOST_LOOKS = 30;
    let checkpoint = null;
    let boxes = [];
    let watched = null;

    function root() {
        return typeof gradioApp === "function" ? gradioApp() : document;
    }

    /** A button of gradio 3 is the element itself, later ones may be wrapped. */
    function press(selector) {
        for (const found of root().querySelectorAll(selector)) {
            const button = found.matches("button") ? found : found.querySelector("button");
            if (button) button.click();
        }
    }

    function holdsImage(value) {
        if (!value || typeof value !== "object") return Boolean(value);
        if ("background" in value) return Boolean(value.background); // an editor of gradio 4 and later
        return "image" in value ? Boolean(value.image) : true; // one of gradio 3, or a file
    }

    /** Whether a box in the open part of the tab holds an image: "yes" or "no"; "" if no box is visible, as for a batch. */
    function tabImage(names, ...values) {
        boxes = names;
        const shown = names.findIndex(isShown);
        if (shown < 0) return "";
        return holdsImage(values[shown]) ? "yes" : "no";
    }

    function isShown(name) {
        return Boolean(root().querySelector(`#${name}`)?.offsetParent);
    }

    /** A busy browser renders later: try again until there is a box. */
    function lookSoon(looks = 1) {
        setTimeout(() => {
            press(".steer-look");
            const open = root().querySelector("#mode_img2img")?.offsetParent;
            if (open && !boxes.some(isShown) && looks < MOST_LOOKS) lookSoon(looks + 1);
        }, DRAWN_MS);
    }

    function followCheckpoint() {
        const now = `${opts.sd_model_checkpoint} ${opts.sd_checkpoint_hash}`;
        if (checkpoint !== null && checkpoint !== now) press(".steer-recheck");
        checkpoint = now;
    }

    function hideBoxes() {
        for (const [name, isShown] of Object.entries(opts)) {
            if (!name.startsWith("steer_show_")) continue;
            for (const tab of ["txt2img", "img2img"]) {
                const id = `${name.slice("steer_show_".length)}_${tab}`;
                const isOn = root().querySelector(`#${id}-checkbox input`)?.checked;
                root().querySelector(`#${id}`)?.classList.toggle("steer-hidden", !isShown && !isOn);
            }
        }
    }

    /** Changes when an image comes or goes, or another box is shown. Looking must not change it, or it would never end. */
    function sight(tab) {
        const all = (selector) => Array.from(tab.querySelectorAll(selector));
        const images = all("img").map((image) => image.src);
        const open = all("[role=tab]").map((button) => button.getAttribute("aria-selected"));
        return JSON.stringify([images, open, all("canvas").length, all("input[type=file]").length]);
    }

    /** Images come and go as elements, in every host. */
    function watch() {
        const found = root().querySelector("#mode_img2img");
        if (!found || found === watched) return;
        watched = found;
        let timer = null;
        let seen = null;
        new MutationObserver(() => {
            clearTimeout(timer);
            timer = setTimeout(() => {
                const now = sight(found);
                if (now !== seen) lookSoon();
                seen = now;
            }, 100);
        }).observe(found, {childList: true, subtree: true, attributes: true, attributeFilter: ["src", "aria-selected", "class"]});
    }

    document.addEventListener("click", event => {
        const button = event.target.closest?.(".steer-switch");
        if (!button || typeof selectCheckpoint !== "function") return;
        button.disabled = true;
        button.textContent = "Switching ...";
        selectCheckpoint(button.dataset.checkpoint);
    });

    if (typeof onAfterUiUpdate === "function") onAfterUiUpdate(watch);
    if (typeof onAfterUiUpdate === "function") onAfterUiUpdate(hideBoxes);
    if (typeof onUiTabChange === "function") onUiTabChange(() => lookSoon());
    if (typeof onOptionsChanged === "function") onOptionsChanged(followCheckpoint);
    if (typeof onOptionsChanged === "function") onOptionsChanged(hideBoxes);
    return {tabImage};
})();
