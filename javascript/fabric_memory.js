/*
 * FABRIC in the browser: both lists survive a reload of the page and a closed tab; txt2img and img2img share them.
 *
 * Only ids and weights are stored, no image: sessionStorage has this page's own, localStorage the last ones of all pages of the
 * browser. Python checks them like anything a browser sends (see lib_methods/fabric/inbox.py) and leaves out images that no longer exist.
 */
(function () {
    "use strict";

    const {tabs, root, textOf, send, schedule, onRedraw} = window.fabricPage;
    const EMPTY = JSON.stringify({likes: "", dislikes: ""});
    const last = {}; // each tab's lists at the last look
    const restoring = new Set(); // tabs

    function keyOf(tab) {
        return `fabric_lists_${tab.name}`;
    }

    function read(tab) {
        try {
            return JSON.parse(sessionStorage.getItem(keyOf(tab)) ?? localStorage.getItem(keyOf(tab))) || {};
        } catch { // storage is off, or holds something else
            return {};
        }
    }

    function write(tab) {
        try {
            for (const place of [sessionStorage, localStorage]) place.setItem(keyOf(tab), last[tab.name]);
        } catch { /* storage is off or full: the lists end with the page */ }
    }

    function look(tab) {
        const line = kind => textOf(tab, kind).value.trim();
        last[tab.name] = JSON.stringify({likes: line("likes"), dislikes: line("dislikes")});
    }

    /** Unchanged lists are not written: a new page's lists are empty until the old ones are restored. */
    function keep(tab) {
        const before = last[tab.name];
        if (before === undefined || restoring.has(tab) || !textOf(tab, "likes") || !textOf(tab, "dislikes")) return;
        look(tab);
        if (last[tab.name] === before) return;
        write(tab);
        share(tab);
    }

    /** Only from the tab that is open, or that `fabricPage.shared` names where none is: two tabs never answer each other. */
    function share(tab) {
        if (!root().querySelector(`#${tab.name}_gallery`)?.offsetParent && window.fabricPage.shared !== tab) return;
        for (const other of Object.values(tabs)) {
            if (other === tab || !textOf(other, "inbox")) continue;
            for (const kind of ["likes", "dislikes"]) {
                send(other, {do: "replace", list: kind, images: textOf(tab, kind).value.trim()});
            }
        }
    }

    async function bringBack(tab) {
        last[tab.name] = EMPTY;
        restoring.add(tab);
        const kept = read(tab);
        const kinds = ["likes", "dislikes"].filter(kind => kept[kind]);
        const answers = await Promise.all(kinds.map(kind => send(tab, {do: "restore", list: kind, images: kept[kind]})));
        restoring.delete(tab);
        if (answers.includes(null)) { // no answer: try again at the next redraw
            delete last[tab.name];
            return;
        }
        if (!kinds.length) return;
        look(tab);
        write(tab); // without what no longer exists, so that it is reported once
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
