// Prompt and settings survive a reload of the page, which gradio itself does when a stopped server is back, and a closed
// tab: sessionStorage has this page's own, localStorage the last ones of all pages of the browser.

/* exported rememberSettings recallSettings */

function settingsKey(tab) {
    return `steer_settings_${tab}`;
}

const recalled = []; // tabs whose settings are back: those of a page that is left before that are not kept

/** Presses the hidden buttons that pass the values: gradio calls their scripts before the page is gone. */
function keepSettings() {
    for (const tab of recalled) {
        const keep = document.getElementById(`${tab}_keep_settings`);
        (keep?.matches('button') ? keep : keep?.querySelector('button'))?.click();
    }
}

let keepTimer = null;

// a moment after the user has touched something, and at the end of the page, for what has been pasted meanwhile
for (const kind of ['input', 'change', 'click']) {
    document.addEventListener(kind, (event) => {
        if (!event.isTrusted) return;
        clearTimeout(keepTimer);
        keepTimer = setTimeout(keepSettings, 300);
    }, true);
}
addEventListener('pagehide', keepSettings);

/** Called with the values of a tab's controls. `layout` names the controls. */
function rememberSettings(tab, layout, values) {
    try {
        for (const place of [sessionStorage, localStorage]) place.setItem(settingsKey(tab), JSON.stringify({layout, values}));
    } catch { /* storage is off or full: the settings end with the page */ }
    return [];
}

/** The values that were kept for the same controls; `undefined` leaves a control as it is. */
function recallSettings(tab, layout, count) {
    if (!recalled.includes(tab)) recalled.push(tab);
    let kept = null;
    try {
        kept = JSON.parse(sessionStorage.getItem(settingsKey(tab)) ?? localStorage.getItem(settingsKey(tab)));
    } catch { /* storage is switched off, or holds something else */ }
    const values = kept?.layout === layout && Array.isArray(kept.values) && kept.values.length === count ? kept.values : [];
    return Array.from({length: count}, (_, place) => values[place] ?? undefined);
}
