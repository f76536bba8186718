/*
 * FABRIC in the browser: both lists outlive a reload of the page.
 *
 * Kept are ids and weights alone, in the storage that belongs to one browser tab: no picture, and nothing that another person's page
 * could see. Python reads them like anything else that a browser sends (see lib_methods/fabric/inbox.py), and leaves out pictures that
 * are no longer there.
 */
(function () {
    "use strict";

    const {tabs, textOf, send, schedule, onRedraw} = window.fabricPage;
    const EMPTY = JSON.stringify({likes: "", dislikes: ""});
    const last = {}; // what each tab's lists were when they were last looked at

    function keyOf(tab) {
        return `fabric_lists_${tab.name}`;
    }

    function read(tab) {
        try {
            return JSON.parse(sessionStorage.getItem(keyOf(tab))) || {};
        } catch { // storage is switched off, or holds something else
            return {};
        }
    }

    function write(tab) {
        try {
            sessionStorage.setItem(keyOf(tab), last[tab.name]);
        } catch { /* storage is switched off or full: the lists end with the page, as everything else on it */ }
    }

    function look(tab) {
        const line = kind => textOf(tab, kind).value.trim();
        last[tab.name] = JSON.stringify({likes: line("likes"), dislikes: line("dislikes")});
    }

    /** Lists that have not changed are not written: those of a new page are empty until the old ones are back. */
    function keep(tab) {
        const before = last[tab.name];
        if (before === undefined || !textOf(tab, "likes") || !textOf(tab, "dislikes")) return;
        look(tab);
        if (last[tab.name] !== before) write(tab);
    }

    async function bringBack(tab) {
        last[tab.name] = EMPTY;
        const kept = read(tab);
        const kinds = ["likes", "dislikes"].filter(kind => kept[kind]);
        const answers = await Promise.all(kinds.map(kind => send(tab, {do: "restore", list: kind, images: kept[kind]})));
        if (!kinds.length || answers.includes(null)) return; // no answer: they are tried again at the next reload
        look(tab);
        write(tab); // without what is not there any more, so that it is told once
    }

    function redraw() {
        for (const tab of Object.values(tabs)) {
            if (last[tab.name] !== undefined) keep(tab);
            else if (textOf(tab, "inbox") && textOf(tab, "outbox")) bringBack(tab);
        }
    }

    function start() {
        onRedraw(redraw);
        addEventListener("pagehide", () => Object.values(tabs).forEach(keep));
        schedule();
    }

    if (typeof onUiLoaded === "function") onUiLoaded(start);
    else start();
})();
