// What can be done with an image of the tab History: look at it in the full-screen viewer, take it to another tab, delete it and undo that.

/* exported historyActions openInHistory historyKey emptyTrash */

const historyDeleted = {ids: [], timer: null};
let historyPanel = null;
let shownInPanel = '';

/** [icon, words, title, action] of each button of an image. */
function historyActions(item) {
    if (historyList.trash) return [['↩', 'Restore', 'Restore this image', () => restoreImages([item.id])]];
    return [
        ['↙', 'Use settings', `Use its prompt and settings in ${item.tab}`, () => sendFromHistory(item, `to_${item.tab}`)],
        ['🖼', 'Send to img2img', 'Send image and settings to img2img', () => sendFromHistory(item, 'send_img2img')],
        ['📐', 'Send to Extras', 'Send the image to Extras, to upscale it', () => sendFromHistory(item, 'send_extras')],
        ['🗑', 'Delete', 'Move to the trash (Del)', () => deleteImage(item)],
    ];
}

function sendFromHistory(item, button) {
    historyList.chosen = item.id;
    if (lightboxIsOpen()) closeLightbox();
    const found = document.getElementById(`history_${button}`);
    (found.matches('button') ? found : found.querySelector('button')).click();
}

// -- delete and undo

async function deleteImage(item) {
    if (item.leaving) return;
    item.leaving = true;
    const answer = await askHistory('trash', {ids: [item.id]});
    item.leaving = false;
    if (answer?.problems.length) tellHistory(answer.problems.join(' '));
    if (!answer || answer.problems.length) return;
    takeOut(item);
    if (!answer.done.length) return tellHistory('This image was no longer there.');
    historyDeleted.ids.push(...answer.done);
    const count = historyDeleted.ids.length;
    tellHistory(`${count} image${count === 1 ? '' : 's'} moved to the trash.`, 'Undo', undoDelete);
}

function undoDelete() {
    const ids = historyDeleted.ids.splice(0);
    if (ids.length) restoreImages(ids);
}

async function restoreImages(ids) {
    const answer = await askHistory('restore', {ids});
    if (!answer) return;
    if (historyList.trash) historyList.items.filter((item) => item && ids.includes(item.id)).forEach(takeOut);
    const count = answer.done.length;
    if (answer.problems.length) tellHistory(answer.problems.join(' '));
    else tellHistory(count ? `${count} image${count === 1 ? '' : 's'} restored.` : 'There is nothing left to restore.');
    lookAtHistory();
}

/** Takes an image off the page at once; the server's list follows. */
function takeOut(item) {
    const place = historyList.items.findIndex((one) => one?.id === item.id);
    if (place >= 0) historyList.items.splice(place, 1);
    historyList.newest = historyList.requests;
    historyList.grid.count = historyList.items.length;
    if (lightboxIsOpen() && lightbox.tab === 'history') {
        if (historyList.items.length) showInLightbox(Math.min(place, historyList.items.length - 1));
        else closeLightbox();
    } else {
        historyList.grid.redraw();
    }
    showHistoryStatus();
    lookAtHistory();
}

/** Asks twice, on the button itself. */
async function emptyTrash(button) {
    const sure = `Delete ${historyList.inTrash} for good?`;
    if (button.textContent !== sure) {
        button.textContent = sure;
        setTimeout(showHistoryStatus, 5000);
        return;
    }
    historyDeleted.ids.length = 0;
    const answer = await askHistory('empty', {});
    if (answer) tellHistory(`${answer.deleted} image${answer.deleted === 1 ? '' : 's'} deleted for good.`);
    lookAtHistory();
}

async function askHistory(what, body) {
    try {
        const answer = await fetch(`/internal/history/${what}`, {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body)});
        const said = await answer.json();
        if (answer.ok) return said;
        tellHistory(said.detail);
    } catch {
        tellHistory('The server does not answer. Check that it is still running.');
    }
    return null;
}

/** A line at the lower edge, with one button if there is something to press. */
function tellHistory(sentence, label = '', action = null) {
    document.querySelector('.history-toast')?.remove();
    const toast = historyElement('div', 'history-toast', '', {role: 'status'});
    toast.append(historyElement('span', '', sentence));
    const end = () => {
        toast.remove();
        if (action) historyDeleted.ids.length = 0;
    };
    if (label) toast.append(historyButton('history-undo', label, `${label} (Ctrl+Z)`, () => { toast.remove(); action(); }));
    (lightboxIsOpen() ? lightboxParts().viewer : document.body).append(toast);
    clearTimeout(historyDeleted.timer);
    const wait = () => { historyDeleted.timer = setTimeout(end, action ? 10000 : 4000); };
    for (const name of ['pointerenter', 'focusin']) toast.addEventListener(name, () => clearTimeout(historyDeleted.timer));
    for (const name of ['pointerleave', 'focusout']) toast.addEventListener(name, wait);
    wait();
}

// -- the viewer

lightboxAlbums.history = {
    get count() { return historyList.items.length; },
    find: (source) => historyList.items.findIndex((item) => item?.id === source.split('/').pop()),
    source: (place) => historyItem(place) ? historyImage(historyItem(place)) : partOf(place).then(() => historyImage(historyItem(place))),
    select: (place) => { historyList.grid.active = place; },
    opened: (viewer) => viewer.append(panelOfHistory()),
    closed: (place) => {
        historyPanel?.remove();
        const toast = document.querySelector('.history-toast');
        if (toast) document.body.append(toast);
        historyList.grid.focusOn(place);
    },
    shown: showInPanel,
    keys: {Delete: () => panelItem() && !historyList.trash && deleteImage(panelItem()), i: togglePanel},
};

function openInHistory(place) {
    if (historyItem(place)) openLightbox('history', historyImage(historyItem(place)));
}

async function partOf(place) {
    await fetchPart(Math.floor(place / PART));
    if (!historyItem(place)) throw new Error('there is no such image');
}

function panelItem() {
    return historyList.items.find((item) => item?.id === shownInPanel);
}

function panelOfHistory() {
    historyPanel ??= historyElement('aside', 'history-panel', '', {'aria-label': 'About this image'});
    historyPanel.classList.toggle('closed', localGet('steer_history_panel') === 'closed');
    return historyPanel;
}

function togglePanel() {
    localSet('steer_history_panel', historyPanel.classList.toggle('closed') ? 'closed' : 'open');
}

async function showInPanel(place) {
    const item = historyItem(place);
    if (!item) return;
    shownInPanel = item.id;
    const head = historyElement('div', 'history-panel-head');
    head.append(
        ...historyActions(item).map(([icon, words, title, action]) => {
            const made = historyButton('lightbox-tool', `${icon} ${words}`, title, action);
            made.removeAttribute('aria-label');
            return made;
        }),
        historyButton('lightbox-tool history-panel-switch', 'i', 'Show or hide the infotext (I)', togglePanel),
    );
    const text = historyElement('div', 'history-panel-text', 'Reading the infotext …');
    historyPanel.replaceChildren(head, text);
    lightboxParts().image.alt = historyAlt(item);
    try {
        const answer = await fetch(`/internal/history/info/${item.id}`);
        const about = await answer.json();
        if (shownInPanel !== item.id) return;
        if (!answer.ok) throw new Error(about.detail);
        const when = new Date(about.time * 1000).toLocaleString();
        text.textContent = about.infotext || 'This image has no infotext.';
        text.append(historyElement('p', 'history-panel-file', `${about.name} · ${when}`));
    } catch (error) {
        text.textContent = error instanceof TypeError ? 'The server does not answer.' : error.message;
    }
}

// -- keys

/** Keys of a tile: its button handles Enter, the grid the arrows. */
function historyKey(event) {
    const tile = event.target.closest('.history-open')?.closest('[data-place]');
    const item = tile && historyItem(Number(tile.dataset.place));
    if (!item || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
    const kind = {l: 'likes', d: 'dislikes'}[event.key.toLowerCase()];
    if (event.key === 'Delete' && !historyList.trash) deleteImage(item);
    else if (kind) tile.querySelector(`[data-fabric-kind="${kind}"]`)?.click();
    else return;
    event.preventDefault();
}

document.addEventListener('keydown', (event) => {
    if (event.key.toLowerCase() !== 'z' || !(event.ctrlKey || event.metaKey) || event.shiftKey || !historyDeleted.ids.length) return;
    if (!historyIsOpen() || event.target.closest?.('input, textarea')) return;
    event.preventDefault();
    document.querySelector('.history-toast')?.remove();
    undoDelete();
}, true);

// -- 👍 and 👎 in the viewer

onUiLoaded(() => window.fabricPage?.marks?.others.push((url) => {
    const item = lightbox.tab === 'history' ? panelItem() : null;
    return item && !item.several && !historyList.trash && url === historyImage(item) ? likesTab() : null;
}));
