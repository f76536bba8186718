/*
 * pix2pix-zero in the browser: below the gallery, after an edit, one button that edits more strongly and one that keeps the shape.
 *
 * Each moves the box's own slider and generates again.
 */
(function () {
    "use strict";

    const BUTTONS = [
        {name: "strength", text: "Stronger", by: 0.25, title: "Edits further from the source, and generates again"},
        {name: "structure", text: "Keep the shape", by: 0.2, title: "Holds the image's form more firmly, and generates again"},
    ];

    function root() {
        return typeof gradioApp === "function" ? gradioApp() : document;
    }

    function sliderOf(tab, name) {
        return root().querySelector(`#pix2pix_zero_${tab}_${name} input[type=range]`);
    }

    function isEdit(tab) {
        const told = root().querySelector(`#html_info_${tab}`)?.textContent || "";
        const isOn = root().querySelector(`#pix2pix_zero_${tab}-checkbox input`)?.checked;
        return isOn && /\bpix2pix-zero (source|directions): /.test(told);
    }

    function again(tab, {name, by}) {
        const slider = sliderOf(tab, name);
        slider.value = String(Number(slider.value) + by); // not beyond its end
        for (const event of ["input", "change"]) slider.dispatchEvent(new Event(event, {bubbles: true}));
        setTimeout(() => root().querySelector(`#${tab}_generate`).click(), 400); // once the slider's value has arrived
    }

    function makeRow(tab) {
        const row = document.createElement("div");
        row.className = "steer-edit-again";
        row.dataset.editAgain = tab;
        for (const button of BUTTONS) {
            const made = document.createElement("button");
            made.type = "button";
            made.textContent = button.text;
            made.title = button.title;
            made.addEventListener("click", () => again(tab, button));
            row.append(made);
        }
        return row;
    }

    function redraw(tab) {
        const place = root().querySelector(`#${tab}_gallery_container`) || root().querySelector(`#${tab}_gallery`);
        if (!place || !sliderOf(tab, "strength")) return;
        let row = root().querySelector(`[data-edit-again=${tab}]`);
        if (!row) {
            row = makeRow(tab);
            place.after(row);
        }
        row.hidden = !isEdit(tab);
        BUTTONS.forEach(({name}, place) => { row.children[place].disabled = sliderOf(tab, name).value === sliderOf(tab, name).max; });
    }

    let scheduled = false;
    function schedule() {
        if (scheduled) return;
        scheduled = true;
        requestAnimationFrame(() => {
            scheduled = false;
            ["txt2img", "img2img"].forEach(redraw);
        });
    }

    if (typeof onAfterUiUpdate === "function") onAfterUiUpdate(schedule);
    document.addEventListener("input", schedule, {passive: true});
})();
