// The tab History: all saved images, newest first, from /internal/history; parts of the list are fetched when they come into view.

/* exported historyChosen historyImage lookAtHistory */

const PART = 100; // images in one answer; a divisor of the server's limit
const historyList = {
    query: '', trash: false, version: '', unread: 0, inTrash: 0,
    items: [], // all places, most of them empty until they come into view
    fresh: new Set(), // parts that belong to `version`; others are from before and are still shown
    loading: new Set(), turn: 0, requests: 0, newest: 0, waitsUntil: 0, scroll: 0, grid: null, likesTab: 'txt2img', chosen: '', again: null, asked: new Set(), asking: null,
};

function historyImage(item) { return `${location.origin}/internal/history/image/${item.id}`; }
function historyThumbnail(item) { return `/internal/history/thumbnail/${item.id}`; }
function historyItem(place) { return historyList.items[place]; }

/** Called with the inputs of the hidden buttons that take an image to another tab. */
function historyChosen() { return historyList.chosen; }

function historyElement(kind, className, text = '', attributes = {}) {
    const made = document.createElement(kind);
    made.className = className;
    made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
}

function historyButton(className, text, title, action) {
    const made = historyElement('button', className, text, {type: 'button', title, 'aria-label': title});
    made.addEventListener('click', (event) => {
        event.stopPropagation();
        action();
    });
    return made;
}

// -- the list

async function fetchPart(part) {
    const [turn, number] = [historyList.turn, ++historyList.requests];
    historyList.loading.add(part);
    try {
        const asked = new URLSearchParams({query: historyList.query, offset: part * PART, limit: PART, trash: historyList.trash});
        const answer = await fetch(`/internal/history?${asked}`);
        const list = await answer.json();
        if (turn !== historyList.turn) return;
        if (!answer.ok) throw new Error(list.detail);
        if (number > historyList.newest) takePart(part, list); // else a later answer, or a deletion, knows better
        historyList.newest = Math.max(historyList.newest, number);
    } catch (error) {
        if (turn !== historyList.turn) return;
        showHistoryStatus(error instanceof TypeError ? 'The server does not answer.' : error.message);
        historyList.waitsUntil = Date.now() + 3000;
        setTimeout(historyList.grid.schedule, 3100);
    } finally {
        if (turn === historyList.turn) historyList.loading.delete(part);
    }
    historyList.grid.schedule();
}

function takePart(part, list) {
    if (list.version !== historyList.version) {
        historyList.fresh.clear();
        if (part === 0) moveDown(list);
    }
    Object.assign(historyList, {version: list.version, unread: list.unread, inTrash: list.in_trash});
    historyList.items.length = list.total;
    list.items.forEach((item, place) => { historyList.items[part * PART + place] = item; });
    historyList.fresh.add(part);
    historyList.grid.count = list.total;
    if (lightbox.tab === 'history') followGallery();
    showHistoryStatus();
    clearTimeout(historyList.again);
    if (list.unread) historyList.again = setTimeout(lookAtHistory, 200); // the search continues where it stopped
}

/** New images are on top: what is known of the others keeps its place behind them. */
function moveDown(list) {
    const first = historyList.items[0];
    const more = first ? list.items.findIndex((item) => item.id === first.id) : 0;
    if (more <= 0 || historyList.items.length + more !== list.total) return;
    historyList.items = [...new Array(more), ...historyList.items];
    historyList.grid.active += more;
}

/** Looks for new images. What is shown stays until the answer is here. */
function lookAtHistory() {
    if (!historyList.grid) return;
    historyList.loading.delete(0);
    fetchPart(0);
}

function fetchInView(first, end) {
    for (let part = Math.floor(first / PART); part * PART < end && Date.now() > historyList.waitsUntil; part++) {
        if (historyList.fresh.has(part) || historyList.loading.has(part) || historyList.loading.size > 1) continue;
        fetchPart(part);
    }
    showHistoryMarks();
}

/** How far the page is scrolled where the first images are right below the search box. */
function historyTop() {
    return document.getElementById('history').getBoundingClientRect().top + scrollY;
}

function searchHistory(query, trash = historyList.trash) {
    if (query === historyList.query && trash === historyList.trash) return;
    Object.assign(historyList, {query, trash, version: '', turn: historyList.turn + 1, items: []});
    historyList.fresh.clear();
    historyList.loading.clear();
    clearTimeout(historyList.again);
    historyList.grid.active = 0;
    if (scrollY > historyTop()) scrollTo(0, historyTop());
    lookAtHistory();
}

// -- what is on the page

function makeHistory(place) {
    const search = historyElement('input', 'history-search', '', {
        type: 'search', placeholder: 'Search prompts, settings and file names', 'aria-label': 'Search prompts, settings and file names', enterkeyhint: 'search',
    });
    let timer = null;
    search.addEventListener('input', () => {
        clearTimeout(timer);
        timer = setTimeout(() => searchHistory(search.value.trim()), 250);
    });
    const trash = historyElement('button', 'history-tool', '', {type: 'button', id: 'history_trash'});
    trash.addEventListener('click', () => searchHistory(historyList.query, !historyList.trash));
    const empty = historyElement('button', 'history-tool history-empty-trash', '', {type: 'button'});
    empty.addEventListener('click', () => emptyTrash(empty));
    const bar = historyElement('div', 'history-bar');
    bar.append(search, historyElement('span', 'history-status', '', {role: 'status'}), trash, empty);
    const frame = historyElement('div', 'history-grid', '', {role: 'list', 'aria-label': 'Images, newest first'});
    place.replaceChildren(bar, historyElement('p', 'history-nothing'), frame);
    historyList.grid = makeGrid({
        frame, inView: fetchInView, above: () => bar.offsetHeight,
        keyOf: (index) => (historyItem(index) ? `${historyItem(index).id} ${historyList.trash}` : ''),
        makeTile: (index) => makeHistoryTile(historyItem(index)),
    });
    frame.addEventListener('keydown', historyKey);
    frame.addEventListener('click', (event) => {
        const tile = event.target.closest('.history-open')?.closest('[data-place]');
        if (tile) openInHistory(Number(tile.dataset.place));
    });
    window.fabricPage?.onRedraw(showHistoryMarks);
}

function showHistoryStatus(problem = '') {
    const count = historyList.items.length;
    const images = `${count.toLocaleString('en')} image${count === 1 ? '' : 's'}`;
    const unread = historyList.unread ? ` · reading ${historyList.unread.toLocaleString('en')} more …` : '';
    document.querySelector('.history-status').textContent = problem || images + unread;
    const nothing = document.querySelector('.history-nothing');
    nothing.hidden = count > 0 || Boolean(problem) || historyList.unread > 0;
    nothing.textContent = historyList.trash && !historyList.inTrash ? 'The trash is empty.'
        : historyList.query ? `No image has “${historyList.query}” in its prompt, settings or file name.`
            : 'No images yet. Whatever you generate appears here.';
    const trash = document.getElementById('history_trash');
    trash.textContent = historyList.trash ? '← Back to all images' : `🗑️ Trash (${historyList.inTrash})`;
    trash.title = historyList.trash ? '' : 'Deleted images stay here for 30 days';
    trash.hidden = !historyList.trash && !historyList.inTrash;
    const empty = document.querySelector('.history-empty-trash');
    empty.hidden = !historyList.trash || !historyList.inTrash;
    empty.textContent = 'Empty the trash';
}

function historyAlt(item) {
    return item.prompt.trim() || item.name.split('/').pop();
}

function makeHistoryTile(item) {
    const tile = historyElement('div', 'history-tile');
    if (!item) return tile;
    tile.dataset.id = item.id;
    const image = historyElement('img', '', '', {alt: historyAlt(item), src: historyThumbnail(item), draggable: 'false', decoding: 'async'});
    const open = historyElement('button', 'history-open', '', {type: 'button', title: historyAlt(item)});
    open.append(image);
    image.addEventListener('error', () => {
        if (image.getAttribute('src')) open.replaceChildren(historyElement('span', 'history-broken', `${item.name.split('/').pop()} cannot be read.`));
    });
    image.addEventListener('load', () => {
        image.classList.toggle('few-pixels', image.naturalWidth * 1.5 <= image.clientWidth);
        if (!item.pixels) askForPixels(item);
    });
    const tools = historyElement('div', 'history-tile-tools');
    tools.append(...historyActions(item).map(([icon, , title, action]) => historyButton('history-mark', icon, title, action)));
    tile.append(open, tools);
    if (window.fabricPage?.marks && !item.several && !historyList.trash) {
        const layer = historyElement('div', 'steer-fabric-layer');
        const bar = window.fabricPage.marks.make(() => ({tab: likesTab(), url: historyImage(item)}));
        bar.classList.add('steer-fabric-small');
        layer.append(bar);
        tile.append(layer);
    }
    return tile;
}

// -- FABRIC

/** The tab whose lists get the likes: the one that was open last. */
function likesTab() {
    return window.fabricPage.tabs[historyList.likesTab];
}

/** With its thumbnail the server has read an image's pixels, by which FABRIC knows it: asks once for what was not known before. */
function askForPixels(item) {
    if (historyList.asked.has(item.id) || !window.fabricPage) return;
    historyList.asked.add(item.id);
    clearTimeout(historyList.asking);
    historyList.asking = setTimeout(() => {
        historyList.fresh.clear();
        historyList.grid.schedule();
    }, 800);
}

/** Shows on the tiles which images are liked, also those that were liked elsewhere. */
function showHistoryMarks() {
    if (!window.fabricPage?.marks || !historyIsOpen()) return;
    const tab = likesTab();
    const listed = new Set(['likes', 'dislikes'].flatMap((kind) => window.fabricPage.idsIn(tab, kind)));
    for (const [place, tile] of historyList.grid?.tiles() ?? []) {
        const [item, bar] = [historyItem(place), tile.querySelector('.steer-fabric-marks')];
        if (!item || !bar) continue;
        if (item.pixels && listed.has(item.pixels)) tab.ids.set(historyImage(item), item.pixels);
        window.fabricPage.marks.show(bar, tab, historyImage(item), true);
    }
}

onUiTabChange(() => {
    const open = get_uiCurrentTabContent()?.id.replace('tab_', '');
    if (open === 'txt2img' || open === 'img2img') historyList.likesTab = open;
    if (window.fabricPage) window.fabricPage.shared = open === 'history' ? likesTab() : null;
    if (open !== 'history') {
        if (historyList.wasOpen) scrollTo(0, 0); // not at the lower end of a tab that is shorter
        historyList.wasOpen = false;
        return;
    }
    historyList.wasOpen = true;
    if (!document.querySelector('#history > .history-grid')) makeHistory(document.getElementById('history'));
    historyList.grid.redraw();
    scrollTo(0, historyList.scroll);
    lookAtHistory();
});
addEventListener('scroll', () => { if (historyIsOpen() && historyList.wasOpen) historyList.scroll = scrollY; }, {passive: true});

function historyIsOpen() {
    return get_uiCurrentTabContent()?.id === 'tab_history';
}

document.addEventListener('steer-job-finished', () => { if (historyIsOpen()) lookAtHistory(); });
document.addEventListener('visibilitychange', () => { if (!document.hidden && historyIsOpen()) lookAtHistory(); });
