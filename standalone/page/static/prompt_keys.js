// Keys in a prompt, as in the WebUI: Ctrl+Up and Ctrl+Down weight the selected words, Alt+Left and Alt+Right move a part between
// commas. On a Mac, Command serves as Ctrl.

/* exported weighted moved */

const WEIGHT_STEP = 0.1;
const NETWORK_STEP = 0.05; // of <lora:name:1>
const WORD_ENDS = /[\s.,\\/!?%^*;:{}=`~()<>[\]|]/;

/** The weight around text[start..end]: where its brackets begin and end, its value; null where there is none. */
function weightAround(text, start, end) {
    const after = /^\s*:\s*(-?\d*\.?\d+)\s*([)>])/.exec(text.slice(end));
    if (!after) return null;
    const open = after[2] === ')' ? '(' : '<';
    const before = text.slice(0, start).trimEnd();
    if (!before.endsWith(open) || before.endsWith('\\(')) return null;
    return {from: before.length - 1, to: end + after[0].length, value: Number(after[1]), open, close: after[2]};
}

/** The brackets with a weight that the cursor is in, innermost first; else the word it is at. */
function wordsAt(text, cursor) {
    for (const found of text.matchAll(/[(<]([^()<>]*):\s*-?\d*\.?\d+\s*[)>]/g)) {
        if (found.index <= cursor && cursor <= found.index + found[0].length) {
            const start = found.index + 1;
            return [start, start + found[1].length];
        }
    }
    let [start, end] = [cursor, cursor];
    while (start > 0 && !WORD_ENDS.test(text[start - 1])) start -= 1;
    while (end < text.length && !WORD_ENDS.test(text[end])) end += 1;
    return [start, end];
}

/**
 * The change that gives the selected words more (direction 1) or less (-1) weight: {from, to, text, start, end}, where `start` and
 * `end` are the words' new place; null where there is nothing to weight. A weight of 1 has no brackets.
 */
function weighted(text, start, end, direction) {
    if (start === end) [start, end] = wordsAt(text, start);
    while (start < end && /\s/.test(text[start])) start += 1;
    while (end > start && /\s/.test(text[end - 1])) end -= 1;
    const words = text.slice(start, end);
    if (!words) return null;
    const around = weightAround(text, start, end);
    const isNetwork = around?.open === '<';
    const value = Math.round(((around?.value ?? 1) + direction * (isNetwork ? NETWORK_STEP : WEIGHT_STEP)) * 100) / 100;
    const [from, to] = around ? [around.from, around.to] : [start, end];
    if (value === 1 && !isNetwork) return {from, to, text: words, start: from, end: from + words.length};
    const [open, close] = around ? [around.open, around.close] : ['(', ')'];
    return {from, to, text: `${open}${words}:${value}${close}`, start: from + 1, end: from + 1 + words.length};
}

/** The change that swaps the part at the cursor with the one before (-1) or after it (1), or null: as `weighted` returns it. */
function moved(text, cursor, direction) {
    const parts = text.split(',');
    let [index, begin] = [0, 0];
    while (index < parts.length - 1 && begin + parts[index].length < cursor) begin += parts[index++].length + 1;
    const other = index + direction;
    if (!parts[other]?.trim() || !parts[index].trim()) return null;
    const words = [parts[index].trim(), parts[other].trim()];
    // only the words change places: blanks and line breaks stay where they are
    parts[index] = parts[index].replace(words[0], () => words[1]);
    parts[other] = parts[other].replace(words[1], () => words[0]);
    const before = parts.slice(0, other).join(',').length + (other ? 1 : 0);
    const start = before + parts[other].indexOf(words[0]);
    return {from: 0, to: text.length, text: parts.join(','), start, end: start + words[0].length};
}

document.addEventListener('keydown', (event) => {
    const box = event.target;
    if (!box.matches?.('textarea') || !box.closest('.prompt, [id$="_prompt"]') || event.shiftKey) return;
    const control = (event.ctrlKey || event.metaKey) && !event.altKey;
    const alt = event.altKey && !event.ctrlKey && !event.metaKey;
    const up = {ArrowUp: 1, ArrowDown: -1}[event.key];
    const right = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!(control && up) && !(alt && right)) return;
    event.preventDefault(); // also of "Back"
    const change = control ? weighted(box.value, box.selectionStart, box.selectionEnd, up) : moved(box.value, box.selectionStart, right);
    if (!change) return;
    box.setSelectionRange(change.from, change.to);
    // so that Ctrl+Z takes it back; gradio hears of it as of typing
    if (!document.execCommand('insertText', false, change.text)) {
        box.setRangeText(change.text);
        updateInput(box);
    }
    box.setSelectionRange(change.start, change.end);
}, true);
