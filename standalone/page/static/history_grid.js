// A grid of square tiles that scrolls with the page. Only the tiles in view, and a margin around them, are on the page.

/* exported makeGrid */

/**
 * frame: an empty element. above(): the height of what covers the window's upper edge. keyOf(index): what the tile shows; it is made again when that changes. makeTile(index): the tile, with one
 * .history-open that takes the focus. inView(first, end): called when other tiles are in view.
 */
function makeGrid({frame, above, keyOf, makeTile, inView}) {
    const GAP = 8;
    const MARGIN = 500; // pixels above and below the window
    const tiles = new Map(); // by place
    let [count, columns, side, active, waiting, wanted] = [0, 1, 1, 0, false, false]; // wanted: the focus, once the tile is there

    function measure() {
        const least = innerWidth < 760 ? 104 : 176;
        columns = Math.max(Math.floor((frame.clientWidth + GAP) / (least + GAP)), 1);
        side = (frame.clientWidth - GAP * (columns - 1)) / columns;
        const rows = Math.ceil(count / columns);
        frame.style.height = `${Math.max(rows * (side + GAP) - GAP, 0)}px`;
    }

    /** The places of the tiles between two heights of the window. */
    function between(top, bottom) {
        const start = frame.getBoundingClientRect().top;
        const row = (height) => Math.floor((height - start) / (side + GAP));
        return [Math.max(row(top) * columns, 0), Math.min((row(bottom) + 1) * columns, count)];
    }

    function redraw() {
        waiting = false;
        if (!frame.offsetParent || !frame.clientWidth) return;
        measure();
        active = Math.max(Math.min(active, count - 1), 0);
        const [first, end] = between(-MARGIN, innerHeight + MARGIN);
        const hadFocus = frame.contains(document.activeElement);
        for (const [place, tile] of tiles) {
            const stays = place < count && (place === active || (place >= first && place < end)) && tile.key === keyOf(place);
            if (!stays) drop(place);
        }
        for (let place = first; place < end; place++) put(place);
        if (count) put(active); // it has the focus, or gets it
        if ((hadFocus || wanted) && document.activeElement === document.body) takeFocus();
        inView(...between(0, innerHeight));
    }

    function drop(place) {
        const {element} = tiles.get(place);
        for (const image of element.querySelectorAll('img')) image.removeAttribute('src'); // ends its request
        element.remove();
        tiles.delete(place);
    }

    function put(place) {
        let tile = tiles.get(place);
        if (!tile) {
            tile = {key: keyOf(place), element: makeTile(place)};
            tile.element.setAttribute('role', 'listitem');
            tile.element.dataset.place = place;
            tiles.set(place, tile);
            frame.append(tile.element);
        }
        const {element} = tile;
        element.setAttribute('aria-posinset', place + 1);
        element.setAttribute('aria-setsize', count);
        element.style.width = element.style.height = `${side}px`;
        element.style.transform = `translate(${place % columns * (side + GAP)}px, ${Math.floor(place / columns) * (side + GAP)}px)`;
        for (const button of element.querySelectorAll('button')) button.tabIndex = place === active ? 0 : -1;
    }

    function schedule() {
        if (waiting) return;
        waiting = true;
        requestAnimationFrame(redraw);
    }

    /** Scrolls to a tile and gives it the focus. */
    function focusOn(place) {
        if (!count) return;
        active = Math.max(Math.min(place, count - 1), 0);
        measure();
        const top = frame.getBoundingClientRect().top + Math.floor(active / columns) * (side + GAP);
        if (top < above()) scrollBy(0, top - above());
        else if (top + side > innerHeight) scrollBy(0, top + side - innerHeight + GAP);
        redraw();
        takeFocus();
    }

    function takeFocus() {
        const open = tiles.get(active)?.element.querySelector('.history-open');
        wanted = !open;
        open?.focus({preventScroll: true});
    }

    frame.addEventListener('focusin', (event) => {
        const tile = event.target.closest('[data-place]');
        if (!tile || Number(tile.dataset.place) === active) return;
        active = Number(tile.dataset.place);
        schedule();
    });
    frame.addEventListener('keydown', (event) => {
        if (event.ctrlKey || event.altKey || event.metaKey || !event.target.closest('.history-open')) return;
        const page = Math.max(Math.floor(innerHeight / (side + GAP)) - 1, 1) * columns;
        const steps = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page, Home: -count, End: count};
        const step = steps[event.key];
        if (!step || (Math.abs(step) > 1 && active + step < 0 && active < columns)) return;
        event.preventDefault();
        focusOn(active + step);
    });
    addEventListener('scroll', schedule, {capture: true, passive: true});
    addEventListener('resize', schedule, {passive: true});
    new ResizeObserver(schedule).observe(frame);

    return {
        set count(value) { count = value; schedule(); },
        get active() { return active; },
        set active(place) { active = place; schedule(); },
        tiles: () => [...tiles.entries()].map(([place, {element}]) => [place, element]),
        redraw, schedule, focusOn,
    };
}
