// Prompt and settings outlive a reload of the page, which gradio itself does when a server that had stopped is back.

/* exported rememberSettings recallSettings */

function settingsKey(tab) {
    return `steer_settings_${tab}`;
}

/** Called with the values of a tab's controls whenever one of them has changed. `layout` names the controls. */
function rememberSettings(tab, layout, values) {
    try {
        sessionStorage.setItem(settingsKey(tab), JSON.stringify({layout, values}));
    } catch { /* storage is switched off or full: the settings end with the page */ }
    return [];
}

/** The values that were kept for the same controls; `undefined` leaves a control as it is. */
function recallSettings(tab, layout, count) {
    let kept = null;
    try {
        kept = JSON.parse(sessionStorage.getItem(settingsKey(tab)));
    } catch { /* storage is switched off, or holds something else */ }
    const values = kept?.layout === layout && Array.isArray(kept.values) && kept.values.length === count ? kept.values : [];
    return Array.from({length: count}, (_, place) => values[place] ?? undefined);
}
