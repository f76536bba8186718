// The helpers that scripts of the WebUI's extensions use, for this page's own structure. Loaded before all other scripts.

/* exported readOptions gradioApp selectCheckpoint takeDesiredCheckpoint get_uiCurrentTab get_uiCurrentTabContent onUiUpdate onAfterUiUpdate onUiLoaded onUiTabChange
   onOptionsChanged onOptionsAvailable uiElementIsVisible uiElementInSight updateInput opts */

var opts = {};
var localization = localization || {}; // filled by /steer/localization.js
var uiCurrentTab = null;

function gradioApp() {
    return document;
}

/** The button of the open tab of the first row of tabs. */
function get_uiCurrentTab() {
    return document.querySelector('#tabs > .tab-nav > button.selected');
}

/** The content of the open tab of the first row of tabs. */
function get_uiCurrentTabContent() {
    return uiOpenTab ? document.getElementById(uiOpenTab) : null;
}

let uiOpenTab = null;
const uiTabStyle = document.createElement('style');

/** Opens one of the tabs below the checkpoint: 'tab_txt2img', 'tab_img2img' ... */
function openTab(id) {
    uiOpenTab = id;
    // a rule rather than inline styles, which gradio overwrites when it draws the columns again
    uiTabStyle.textContent = `#tabs > .tabitem:not(#${CSS.escape(id)}) { display: none !important; }`;
    if (!uiTabStyle.isConnected) document.head.append(uiTabStyle);
    for (const button of document.querySelectorAll('#tabs > .tab-nav > button')) {
        const selected = button.getAttribute('aria-controls') === id;
        button.classList.toggle('selected', selected);
        button.setAttribute('aria-selected', selected);
        button.tabIndex = selected ? 0 : -1;
    }
    window.dispatchEvent(new Event('resize'));
    uiChanged([]);
}

/** Makes the row of buttons over the tabs. */
function makeTabs() {
    const tabs = document.getElementById('tabs');
    const labels = document.getElementById('tab_labels');
    if (!tabs || !labels || !labels.textContent.trim() || tabs.querySelector(':scope > .tab-nav')) return;
    const row = document.createElement('div');
    row.className = 'tab-nav';
    row.setAttribute('role', 'tablist');
    for (const [id, label] of Object.entries(JSON.parse(labels.textContent))) {
        const button = document.createElement('button');
        button.type = 'button';
        button.textContent = label;
        button.setAttribute('role', 'tab');
        button.setAttribute('aria-controls', id);
        button.addEventListener('click', () => openTab(id));
        row.append(button);
    }
    row.addEventListener('keydown', (event) => {
        const buttons = Array.from(row.children);
        const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
        if (!step) return;
        const next = buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length];
        next.click();
        next.focus();
    });
    tabs.prepend(row);
    openTab(row.children[0].getAttribute('aria-controls'));
}

const uiListeners = {update: [], afterUpdate: [], loaded: [], tabChange: [], optionsChanged: [], optionsAvailable: []};

function onUiUpdate(callback) { uiListeners.update.push(callback); }
function onAfterUiUpdate(callback) { uiListeners.afterUpdate.push(callback); }
function onUiTabChange(callback) { uiListeners.tabChange.push(callback); }
function onOptionsChanged(callback) { uiListeners.optionsChanged.push(callback); }

function onUiLoaded(callback) {
    if (uiIsLoaded) {
        runCallbacks([callback]);
    } else {
        uiListeners.loaded.push(callback);
    }
}

function onOptionsAvailable(callback) {
    if (Object.keys(opts).length > 0) {
        runCallbacks([callback]);
    } else {
        uiListeners.optionsAvailable.push(callback);
    }
}

function runCallbacks(callbacks, argument) {
    for (const callback of callbacks) {
        try {
            callback(argument);
        } catch (error) {
            console.error('error in a callback of the page', callback, error);
        }
    }
}

let uiIsLoaded = false;
let afterUpdateTimer = null;

function uiChanged(mutations) {
    if (!uiIsLoaded) makeTabs();
    if (!uiIsLoaded && document.querySelector('#tabs > .tab-nav') && document.querySelector('#img2img_gallery')) {
        uiIsLoaded = true;
        runCallbacks(uiListeners.loaded);
    }
    runCallbacks(uiListeners.update, mutations);
    clearTimeout(afterUpdateTimer);
    afterUpdateTimer = setTimeout(() => runCallbacks(uiListeners.afterUpdate), 200);
    const tab = get_uiCurrentTab();
    if (tab && tab !== uiCurrentTab) {
        uiCurrentTab = tab;
        runCallbacks(uiListeners.tabChange);
    }
}

function whenParsed(callback) {
    if (document.readyState === 'loading') {
        document.addEventListener('DOMContentLoaded', callback);
    } else {
        callback();
    }
}

whenParsed(() => {
    new MutationObserver(uiChanged).observe(document.body, {childList: true, subtree: true});
    readOptions().then(() => runCallbacks(uiListeners.optionsAvailable));
});

/** Reads the settings from the server, at the start and when something has changed them. */
function readOptions() {
    return fetch('/internal/options').then((answer) => (answer.ok ? answer.json() : {})).then((values) => {  // {}: on the login page
        opts = values;
        runCallbacks(uiListeners.optionsChanged);
    }).catch((error) => console.error('the settings cannot be read', error));
}

/** Whether an element and everything around it is shown. */
function uiElementIsVisible(element) {
    for (let current = element; current && current !== document; current = current.parentNode) {
        if (getComputedStyle(current).display === 'none') return false;
    }
    return true;
}

function uiElementInSight(element) {
    const box = element.getBoundingClientRect();
    return box.bottom > 0 && box.top < window.innerHeight;
}

/** Tells gradio that a script has changed the value of an input. */
function updateInput(target) {
    target.dispatchEvent(new Event('input', {bubbles: true}));
}

function localSet(key, value) { try { localStorage.setItem(key, value); } catch (error) { /* storage is off */ } }
function localRemove(key) { try { localStorage.removeItem(key); } catch (error) { /* storage is off */ } }
function localGet(key, fallback) {
    try {
        return localStorage.getItem(key) ?? fallback;
    } catch (error) {
        return fallback;
    }
}

// -- galleries

function gallery_container_buttons(container) {
    return document.querySelectorAll(`#${container} .thumbnail-item.thumbnail-small`);
}

function all_gallery_buttons() {
    const tab = get_uiCurrentTabContent();
    if (!tab) return [];
    return Array.from(tab.querySelectorAll('[id$="_gallery"] .thumbnail-item.thumbnail-small'))
        .filter((element) => element.parentElement.offsetParent);
}

function selected_gallery_button() {
    return all_gallery_buttons().find((element) => element.classList.contains('selected')) ?? null;
}

function selected_gallery_index() {
    return all_gallery_buttons().findIndex((element) => element.classList.contains('selected'));
}

function selected_gallery_index_id(container) {
    return Array.from(gallery_container_buttons(container)).findIndex((element) => element.classList.contains('selected'));
}

// -- tabs

function clickTab(tabs, name) {
    for (const button of document.querySelectorAll(`#${tabs} > .tab-wrapper button[role="tab"]`)) {
        if ([name, localization[name]].includes(button.textContent.trim())) {
            button.click();
            return;
        }
    }
}

function switch_to_txt2img(...args) { openTab('tab_txt2img'); return args; }
function switch_to_img2img(...args) { openTab('tab_img2img'); clickTab('mode_img2img', 'img2img'); return args; }
function switch_to_extras(...args) { openTab('tab_extras'); clickTab('mode_extras', 'Single Image'); return args; }
function switch_to_inpaint(...args) { openTab('tab_img2img'); clickTab('mode_img2img', 'Inpaint'); return args; }

let desiredCheckpoint = null;

/** Chooses a checkpoint by its title, as scripts of the WebUI's extensions do. */
function selectCheckpoint(title) {
    desiredCheckpoint = title;
    const found = document.getElementById('change_checkpoint');
    (found.matches('button') ? found : found.querySelector('button')).click();
}

/** The requested title, once; without one the chosen title. */
function takeDesiredCheckpoint(chosen) {
    const title = desiredCheckpoint ?? chosen;
    desiredCheckpoint = null;
    return title;
}

function get_tab_index(tabs) {
    const buttons = Array.from(document.querySelectorAll(`#${tabs} > .tab-wrapper button[role="tab"]`));
    return Math.max(buttons.findIndex((button) => button.getAttribute('aria-selected') === 'true'), 0);
}

/** Waits until what was just opened is on the page. */
function pageIsDrawn() {
    return new Promise((resolve) => setTimeout(resolve, 300));
}

// -- accordions with a switch

/** Sets the switch of an InputAccordion by the accordion's id. */
function inputAccordionChecked(id, checked) {
    const box = document.querySelector(`#${CSS.escape(id)}-checkbox input`);
    if (box && box.checked !== checked) box.click();
}

onAfterUiUpdate(() => {
    for (const box of document.querySelectorAll('.input-accordion-switch input:not([id])')) {
        box.id = box.closest('.input-accordion-switch').id.replace(/-checkbox$/, '-visible-checkbox');
    }
});

// -- the first images

document.addEventListener('click', (event) => {
    const example = event.target.closest?.('.first-run button');
    const prompt = example && document.querySelector('#txt2img_prompt textarea');
    if (!prompt) return;
    prompt.value = example.textContent;
    updateInput(prompt);
    setTimeout(() => document.getElementById('txt2img_generate').click(), 100); // once gradio has read the prompt
});

/** What is much smaller than its place on the screen shows its pixels instead of a blur. */
document.addEventListener('load', ({target}) => {
    if (target.matches?.('[id$="_gallery"] img, #modalImage')) {
        target.classList.toggle('few-pixels', target.naturalWidth * 2.5 <= target.clientWidth);
    }
}, true);

// -- light and dark

function switchTheme() {
    const dark = document.body.classList.toggle('dark');
    localSet('steer_theme', dark ? 'dark' : 'light');
}

onUiLoaded(() => {
    const wanted = localGet('steer_theme');
    if (wanted && !new URLSearchParams(location.search).has('__theme')) {
        document.body.classList.toggle('dark', wanted === 'dark');
    }
});

// -- names for screen readers

onAfterUiUpdate(() => {
    for (const empty of document.querySelectorAll('.empty[aria-label]:not([role])')) empty.setAttribute('role', 'img'); // gradio's gallery
});

// -- titles of the small buttons

const buttonTitles = {
    paste: 'Read settings from the infotext in the prompt box, or from the last image if the box is empty',
    img2img_paste: 'Read settings from the infotext in the prompt box, or from the last image if the box is empty',
    clear_prompt: 'Clear both prompts', res_switch_btn: 'Swap width and height',
    random_seed: 'Set the seed to -1: a random one every time', reuse_seed: 'Use the seed of the selected image',
    generate: 'Ctrl+Enter', interrupt: 'Stop now (Esc)', skip: 'Stop this batch and go on with the next (Alt+Enter)',
    send_to_img2img: 'Send image and settings to img2img', send_to_inpaint: 'Send image and settings to inpainting',
    send_to_txt2img: 'Send the settings to txt2img', send_to_extras: 'Send the image to Extras, to upscale it', refresh_sd_model_checkpoint: 'Look for checkpoints again',
    steer_theme: 'Light or dark',
};
for (const tab of ['txt2img', 'img2img', 'extras']) {
    buttonTitles[`save_${tab}`] = 'Keep a copy of the selected image in outputs/saved';
    buttonTitles[`save_zip_${tab}`] = 'Download all images of the gallery in one file';
}

onAfterUiUpdate(() => {
    for (const [name, title] of Object.entries(buttonTitles)) {
        for (const id of [name, `txt2img_${name}`, `img2img_${name}`, `extras_${name}`]) {
            const element = document.getElementById(id);
            if (element && element.title !== title) element.title = title;
        }
    }
});
