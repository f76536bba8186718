// The full-screen viewer of both galleries and of the history. Its ids are the WebUI's, so that extensions find it: fabric_marks.js
// puts 👍 and 👎 on it, with the keys L and D.

/* exported openLightbox closeLightbox lightboxAlbums lightboxIsOpen */

/**
 * What the viewer shows beside the galleries, by name: {count, find(source), source(place) or a promise of it, select(place)}, and
 * perhaps {opened(viewer), shown(place), closed(place), keys}.
 */
const lightboxAlbums = {};
const lightbox = {
    tab: null, place: 0, source: '', focused: null, zoom: 1, x: 0, y: 0, divider: null, pointers: new Map(), travelled: 0, watcher: null, viewer: null,
};
const MOST_ZOOM = 16;
const SWIPE = 60; // pixels

function lightboxParts() {
    lightbox.viewer ??= makeLightbox();
    return {viewer: lightbox.viewer, image: lightbox.viewer.querySelector('#modalImage')};
}

function lightboxIsOpen() {
    return lightbox.tab !== null;
}

/** The gallery's images, with the buttons that select them. */
function galleryItems(tab) {
    const small = document.querySelectorAll(`#${tab}_gallery .thumbnail-small`);
    const found = small.length ? small : document.querySelectorAll(`#${tab}_gallery .thumbnail-lg`);
    return Array.from(found, (button) => ({button, source: button.querySelector('img')?.src, selected: button.classList.contains('selected')}))
        .filter((item) => item.source);
}

function albumOf(tab) {
    if (lightboxAlbums[tab]) return lightboxAlbums[tab];
    const items = galleryItems(tab);
    return {
        count: items.length,
        find: (source) => items.findIndex((item) => item.source === source),
        selected: Math.max(items.findIndex((item) => item.selected), 0),
        source: (place) => items[place].source,
        select: (place) => items[place].button.click(), // what "Send to" takes is what is seen
    };
}

function makeLightbox() {
    const viewer = document.createElement('div');
    viewer.id = 'lightboxModal';
    viewer.tabIndex = 0;
    viewer.setAttribute('role', 'dialog');
    viewer.setAttribute('aria-modal', 'true');
    viewer.setAttribute('aria-label', 'Full screen. Arrow keys change the image, + and - zoom, C compares with the image before, Escape closes.');
    const image = document.createElement('img');
    image.id = 'modalImage';
    image.alt = '';
    image.draggable = false;
    const count = document.createElement('span');
    count.className = 'lightbox-count';
    const tools = document.createElement('div');
    tools.className = 'lightbox-tools';
    const button = (text, title, action, className) => {
        const made = document.createElement('button');
        made.type = 'button';
        made.textContent = text;
        made.title = title;
        made.setAttribute('aria-label', title);
        made.className = className;
        made.addEventListener('click', action);
        return made;
    };
    tools.append(
        count,
        button('−', 'Zoom out (-)', () => zoomLightbox(1 / 1.5), 'lightbox-tool'),
        button('+', 'Zoom in (+)', () => zoomLightbox(1.5), 'lightbox-tool'),
        button('1:1', 'Original size, or the whole image (Z)', toggleLightboxZoom, 'lightbox-tool'),
        button('◧', 'Compare with the image it was made from (C)', toggleComparison, 'lightbox-tool lightbox-compare'),
        button('✕', 'Close (Esc)', closeLightbox, 'lightbox-tool lightbox-close'),
    );
    const before = image.cloneNode();
    before.id = 'lightboxBefore';
    before.addEventListener('load', offerComparison);
    image.addEventListener('load', offerComparison);
    viewer.append(image, before, makeDivider(), tools,
        button('‹', 'Previous image (left arrow)', () => stepLightbox(-1), 'lightbox-step lightbox-previous'),
        button('›', 'Next image (right arrow)', () => stepLightbox(1), 'lightbox-step lightbox-next'));
    viewer.addEventListener('keydown', lightboxKey);
    viewer.addEventListener('wheel', (event) => {
        event.preventDefault();
        zoomLightbox(Math.exp(-event.deltaY * 0.0015), event.clientX, event.clientY);
    }, {passive: false});
    image.addEventListener('dblclick', (event) => toggleLightboxZoom(event));
    for (const name of ['pointerdown', 'pointermove', 'pointerup', 'pointercancel']) image.addEventListener(name, lightboxPointer);
    return viewer;
}

/** Opens the viewer on an image of a tab's gallery or of an album; without an address on the selected one. */
function openLightbox(tab, source) {
    const album = albumOf(tab);
    if (!album.count) return;
    const {viewer} = lightboxParts();
    const found = album.find(source);
    lightbox.focused = document.activeElement;
    lightbox.tab = tab;
    document.body.append(viewer); // on the page only while it is open
    document.body.classList.add('lightbox-open');
    album.opened?.(viewer);
    showInLightbox(found >= 0 ? found : album.selected);
    viewer.focus();
    const gallery = document.getElementById(`${tab}_gallery`);
    if (!gallery) return;
    lightbox.watcher = new MutationObserver(followGallery);
    lightbox.watcher.observe(gallery, {childList: true, subtree: true, attributes: true, attributeFilter: ['src']});
}

function closeLightbox() {
    const album = albumOf(lightbox.tab);
    lightbox.watcher?.disconnect();
    lightbox.tab = null;
    lightboxParts().viewer.remove();
    document.body.classList.remove('lightbox-open');
    if (lightbox.focused?.isConnected) lightbox.focused.focus({preventScroll: true});
    album.closed?.(lightbox.place);
}

/** Shows image number `place`, once its address is known. */
function showInLightbox(place) {
    const album = albumOf(lightbox.tab);
    const source = album.source(place);
    lightbox.place = place;
    countInLightbox(album);
    if (typeof source === 'string') return drawInLightbox(album, source);
    const tab = lightbox.tab;
    source.then((found) => { if (lightbox.place === place && lightbox.tab === tab) drawInLightbox(album, found); }).catch(() => {});
}

function drawInLightbox(album, source) {
    lightbox.source = source;
    lightboxParts().image.src = source;
    document.getElementById('lightboxBefore').src = beforeOf(source);
    offerComparison();
    placeLightbox(1, 0, 0);
    album.shown?.(lightbox.place);
}

function countInLightbox(album) {
    document.querySelector('.lightbox-count').textContent = `${lightbox.place + 1} / ${album.count}`;
    for (const step of document.querySelectorAll('.lightbox-step')) step.hidden = album.count < 2;
}

function stepLightbox(offset, absolute = null) {
    const album = albumOf(lightbox.tab);
    if (!album.count) return;
    const next = absolute ?? (lightbox.place + offset + album.count) % album.count;
    album.select(next);
    showInLightbox(next);
    lightboxParts().viewer.focus();
}

/** The images have changed: a job has ended. What is no longer there gives way to the selected image. */
function followGallery() {
    const album = albumOf(lightbox.tab);
    if (!album.count) return;
    const same = album.find(lightbox.source);
    if (same < 0) return showInLightbox(album.selected ?? Math.min(lightbox.place, album.count - 1));
    lightbox.place = same;
    countInLightbox(album);
}

// -- before and after

/** The address of the image that those in the gallery were made from, or ''. */
function beforeOf(source) {
    const file = document.querySelector(`#html_log_${lightbox.tab} .before-image`)?.dataset.file;
    const [start, name] = source.split('/file=');
    return file && name ? `${start}/file=${encodeURI(file)}` : '';
}

/** Only images of one shape can be compared, which a grid is not. */
function offerComparison() {
    const [image, before] = [lightboxParts().image, document.getElementById('lightboxBefore')];
    const shape = (one) => one.naturalWidth / one.naturalHeight;
    const fits = Boolean(before?.getAttribute('src')) && Math.abs(shape(image) / shape(before) - 1) < 0.01;
    before?.classList.toggle('few-pixels', image.classList.contains('few-pixels'));
    lightbox.viewer.classList.toggle('can-compare', fits);
    lightbox.viewer.classList.toggle('compares', fits && lightbox.divider !== null);
}

function toggleComparison() {
    lightbox.divider = lightbox.divider === null ? 0.5 : null;
    offerComparison();
    placeDivider();
}

/** The line between before (left) and after (right); dragged, or moved by the arrow keys while it has the focus. */
function makeDivider() {
    const divider = document.createElement('div');
    divider.className = 'lightbox-divider';
    divider.tabIndex = 0;
    divider.setAttribute('role', 'slider');
    divider.setAttribute('aria-label', 'Before and after');
    divider.addEventListener('pointerdown', (event) => divider.setPointerCapture(event.pointerId));
    divider.addEventListener('pointermove', (event) => {
        if (divider.hasPointerCapture(event.pointerId)) moveDivider(event.clientX / innerWidth);
    });
    divider.addEventListener('keydown', (event) => {
        const step = {ArrowLeft: -0.02, ArrowRight: 0.02}[event.key];
        if (!step) return;
        event.preventDefault();
        event.stopPropagation();
        moveDivider(lightbox.divider + step);
    });
    return divider;
}

function moveDivider(place) {
    lightbox.divider = Math.min(Math.max(place, 0), 1);
    placeDivider();
}

function placeDivider() {
    const [before, divider] = [document.getElementById('lightboxBefore'), document.querySelector('.lightbox-divider')];
    if (lightbox.divider === null || !before || !divider) return;
    const right = innerWidth * lightbox.divider;
    before.style.transform = lightboxParts().image.style.transform;
    const shown = (right - innerWidth / 2 - lightbox.x) / lightbox.zoom + innerWidth / 2; // in pixels of the image before its transform
    before.style.clipPath = `inset(0 ${Math.max(innerWidth - shown, 0)}px 0 0)`;
    divider.style.left = `${right}px`;
    divider.setAttribute('aria-valuenow', Math.round(100 * lightbox.divider));
}

// -- zoom

function placeLightbox(zoom, x, y) {
    const {image} = lightboxParts();
    lightbox.zoom = Math.min(Math.max(zoom, 1), MOST_ZOOM);
    const reach = (side) => side * (lightbox.zoom - 1) / 2;
    lightbox.x = Math.min(Math.max(x, -reach(innerWidth)), reach(innerWidth));
    lightbox.y = Math.min(Math.max(y, -reach(innerHeight)), reach(innerHeight));
    image.style.transform = `translate(${lightbox.x}px, ${lightbox.y}px) scale(${lightbox.zoom})`;
    image.classList.toggle('zoomed', lightbox.zoom > 1);
    placeDivider();
}

/** Zooms by a factor about a point of the screen. */
function zoomLightbox(factor, x = innerWidth / 2, y = innerHeight / 2) {
    const zoom = Math.min(Math.max(lightbox.zoom * factor, 1), MOST_ZOOM);
    const share = zoom / lightbox.zoom;
    const [fromX, fromY] = [x - innerWidth / 2, y - innerHeight / 2];
    placeLightbox(zoom, fromX - (fromX - lightbox.x) * share, fromY - (fromY - lightbox.y) * share);
}

function toggleLightboxZoom(event) {
    const {image} = lightboxParts();
    const shown = Math.min(innerWidth / image.naturalWidth, innerHeight / image.naturalHeight);
    const original = shown < 1 ? 1 / shown : 2; // one that is smaller than the screen is shown enlarged already
    if (lightbox.zoom > 1) placeLightbox(1, 0, 0);
    else if (event?.target === image) zoomLightbox(original, event.clientX, event.clientY);
    else zoomLightbox(original);
}

/** Dragging moves a zoomed image, swiping changes it, two fingers zoom, and a click beside it closes. */
function lightboxPointer(event) {
    const {image} = lightboxParts();
    const last = lightbox.pointers.get(event.pointerId);
    if (event.type === 'pointerdown') {
        if (!lightbox.pointers.size) lightbox.travelled = 0;
        lightbox.pointers.set(event.pointerId, {x: event.clientX, y: event.clientY, from: event.clientX});
        image.setPointerCapture(event.pointerId);
        return;
    }
    if (!last) return;
    if (event.type === 'pointermove') {
        const [dx, dy] = [event.clientX - last.x, event.clientY - last.y];
        lightbox.travelled += Math.abs(dx) + Math.abs(dy);
        const other = [...lightbox.pointers].find(([id]) => id !== event.pointerId)?.[1];
        if (other) {
            const apart = (point) => Math.hypot(point.x - other.x, point.y - other.y);
            const now = {x: event.clientX, y: event.clientY};
            zoomLightbox(apart(now) / Math.max(apart(last), 1), (now.x + other.x) / 2, (now.y + other.y) / 2);
        } else if (lightbox.zoom > 1) {
            placeLightbox(lightbox.zoom, lightbox.x + dx, lightbox.y + dy);
        }
        Object.assign(last, {x: event.clientX, y: event.clientY});
        return;
    }
    const alone = lightbox.pointers.size === 1;
    lightbox.pointers.delete(event.pointerId);
    if (event.type !== 'pointerup' || !alone || lightbox.zoom > 1) return;
    const swiped = event.clientX - last.from;
    if (Math.abs(swiped) > SWIPE) stepLightbox(swiped < 0 ? 1 : -1);
    else if (lightbox.travelled < 10 && !isOnPicture(image, event)) closeLightbox();
}

/** Whether a point of the screen is on the image itself, which may be narrower or lower than its element. */
function isOnPicture(image, point) {
    const scale = Math.min(innerWidth / image.naturalWidth, innerHeight / image.naturalHeight);
    return Math.abs(point.clientX - innerWidth / 2) * 2 < image.naturalWidth * scale
        && Math.abs(point.clientY - innerHeight / 2) * 2 < image.naturalHeight * scale;
}

// -- keys and clicks

function lightboxKey(event) {
    const actions = {
        ArrowLeft: () => stepLightbox(-1), ArrowRight: () => stepLightbox(1), Home: () => stepLightbox(0, 0),
        End: () => stepLightbox(0, albumOf(lightbox.tab).count - 1), Escape: closeLightbox,
        '+': () => zoomLightbox(1.5), '=': () => zoomLightbox(1.5), '-': () => zoomLightbox(1 / 1.5),
        0: () => placeLightbox(1, 0, 0), z: toggleLightboxZoom, c: toggleComparison, ...albumOf(lightbox.tab).keys,
    };
    event.stopPropagation(); // Escape closes the viewer; the job continues
    if (event.key === 'Tab') return holdFocus(event);
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    action();
}

/** Tab goes round within the viewer. */
function holdFocus(event) {
    const buttons = Array.from(lightboxParts().viewer.querySelectorAll('button')).filter((button) => button.offsetParent);
    const edge = event.shiftKey ? buttons[0] : buttons[buttons.length - 1];
    if (document.activeElement !== edge && document.activeElement !== lightboxParts().viewer) return;
    event.preventDefault();
    (event.shiftKey ? buttons[buttons.length - 1] : buttons[0])?.focus();
}

// before gradio, which would go to the next image
document.addEventListener('click', (event) => {
    const button = event.target.closest?.('[id$="_gallery"] .preview .media-button, button[id$="_full_screen"]');
    const tab = button && /^(txt2img|img2img|extras)_/.exec(button.id || button.closest('[id$="_gallery"]').id)?.[1];
    if (!tab) return;
    event.preventDefault();
    event.stopPropagation();
    openLightbox(tab);
}, true);
