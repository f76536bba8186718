/*
 * FABRIC in the browser: a tray below the result gallery, with the feedback images, Strength and Compare; nothing to scroll for.
 *
 * It shows and changes what the box's own controls hold: the lists' cards are copied, the slider moves the box's, and Compare
 * presses the box's button.
 */
(function () {
    "use strict";

    const {tabs, root, send, textOf, schedule, onRedraw} = window.fabricPage;
    const SUBMITTED_MS = 1500; // by then the page has taken the job's inputs

    function strengthOf(tab) {
        return root().querySelector(`#fabric_${tab.name}_strength input[type=range]`);
    }

    function makeTray(tab) {
        const tray = document.createElement("div");
        tray.className = "steer-fabric-tray";
        tray.dataset.fabricTray = tab.name;
        const images = document.createElement("div");
        images.className = "steer-fabric-tray-images";
        const label = document.createElement("label");
        label.textContent = "Strength";
        label.title = "How much the images count";
        const slider = document.createElement("input");
        slider.type = "range";
        slider.addEventListener("input", () => {
            const own = strengthOf(tab);
            own.value = slider.value;
            for (const name of ["input", "change"]) own.dispatchEvent(new Event(name, {bubbles: true}));
            schedule();
        });
        const value = document.createElement("output");
        label.append(slider, value);
        const compare = document.createElement("button");
        compare.type = "button";
        compare.className = "steer-fabric-compare";
        compare.textContent = "Compare";
        compare.title = "Generates the same seeds without and with the feedback images";
        compare.addEventListener("click", () => press(`#fabric_${tab.name}_compare_once`));
        tray.append(images, label, compare);
        return tray;
    }

    function press(selector) {
        const found = root().querySelector(selector);
        (found.matches("button") ? found : found.querySelector("button")).click();
    }

    function makeThumb(tab, kind, card) {
        const thumb = document.createElement("button");
        thumb.type = "button";
        thumb.className = "steer-fabric-thumb";
        thumb.dataset.fabricList = kind;
        thumb.title = thumb.ariaLabel = `Remove this ${kind === "likes" ? "like" : "dislike"}`;
        const picture = card.querySelector("img, .steer-fabric-missing").cloneNode(true);
        if (picture.matches("img")) picture.alt = "";
        thumb.append(picture);
        thumb.addEventListener("click", () => send(tab, {do: "remove", list: kind, id: card.dataset.fabricId}));
        return thumb;
    }

    /** The tray stands after the gallery's frame, where hosts have one. */
    function placeOf(tab) {
        return root().querySelector(`#${tab.name}_gallery_container`) || root().querySelector(`#${tab.name}_gallery`);
    }

    function redraw(tab) {
        const place = placeOf(tab);
        const board = root().querySelector(`.steer-fabric-board[data-fabric-tab="${tab.name}"]`);
        if (!place || !board || !strengthOf(tab)) return;
        let tray = root().querySelector(`[data-fabric-tray="${tab.name}"]`);
        if (!tray) {
            tray = makeTray(tab);
            place.after(tray);
        }
        const cards = [...board.querySelectorAll(".steer-fabric-card")];
        const listed = cards.map(card => `${card.closest("[data-fabric-list]").dataset.fabricList} ${card.dataset.fabricId}`).join();
        if (tray.dataset.listed !== listed) {
            tray.dataset.listed = listed;
            tray.firstChild.replaceChildren(...cards.map(card => makeThumb(tab, card.closest("[data-fabric-list]").dataset.fabricList, card)));
        }
        tray.hidden = !cards.length;
        tray.classList.toggle("steer-fabric-off", root().querySelector(`#fabric_${tab.name}-checkbox input`)?.checked === false);
        const [own, slider, value] = [strengthOf(tab), tray.querySelector("input"), tray.querySelector("output")];
        for (const name of ["min", "max", "step"]) if (slider[name] !== own[name]) slider[name] = own[name];
        if (document.activeElement !== slider || slider.value !== own.value) slider.value = own.value;
        if (value.value !== own.value) value.value = own.value;
    }

    /** Called when Compare is set: generates, and returns what Compare is afterwards. */
    window.fabricPage.generateOnce = async function (name) {
        press(`#${name}_generate`);
        await new Promise(resume => setTimeout(resume, SUBMITTED_MS));
        return false;
    };

    onRedraw(() => Object.values(tabs).filter(tab => textOf(tab, "likes")).forEach(redraw));
    document.addEventListener("input", event => {
        if (event.target.closest?.("[id^=fabric_][id$=_strength]")) schedule();
    }, {passive: true});
    schedule();
})();
