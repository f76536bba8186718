// Translates the page as the WebUI's localisation does: texts, titles, placeholders and names of controls that are exactly an
// entry of `localization`. What somebody typed, infotexts, file names and the choices of lists stay as they are.

(function () {
    'use strict';

    if (!Object.keys(localization).length) return;

    const KEPT = [
        'script, style, textarea, input, select, [contenteditable]',
        '[role=listbox], .file-preview, .caption-label, .first-run, .token-counter', // names and prompts
        '.infotext, .html-log, .history-panel-text, #pnginfo_html2_info, #tab_labels, #footer',
        '.steer-cascade-sheet, .steer-dreambooth-samples, .steer-dreambooth-plan dd',
    ].join();
    const ATTRIBUTES = ['title', 'placeholder', 'aria-label'];

    function translate(text) {
        const bare = text.trim();
        const found = bare && Object.hasOwn(localization, bare) ? localization[bare] : null;
        return found === null ? text : text.replace(bare, () => found);
    }

    function translateText(node) {
        const translated = node.parentElement?.closest(KEPT) ? node.data : translate(node.data);
        if (translated !== node.data) node.data = translated;
    }

    /** gradio's own small buttons keep their names, by which scripts find them. */
    function isFoundByName(element) {
        return element.matches('button:not([class*=steer-])');
    }

    function translateAttribute(element, name) {
        const text = element.getAttribute(name);
        if (text === null || element.parentElement?.closest(KEPT) || (name === 'aria-label' && isFoundByName(element))) return;
        const translated = translate(text);
        if (translated !== text) element.setAttribute(name, translated);
    }

    function translateAll(root) {
        if (root.nodeType === Node.TEXT_NODE) translateText(root);
        if (root.nodeType !== Node.ELEMENT_NODE) return;
        const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) translateText(walker.currentNode);
        for (const name of ATTRIBUTES) {
            for (const element of [root, ...root.querySelectorAll(`[${name}]`)]) translateAttribute(element, name);
        }
    }

    function follow(mutations) {
        for (const {type, target, addedNodes, attributeName} of mutations) {
            if (type === 'childList') addedNodes.forEach(translateAll);
            else if (type === 'attributes') translateAttribute(target, attributeName);
            else if (target.nodeType === Node.TEXT_NODE) translateText(target);
        }
    }

    whenParsed(() => {
        translateAll(document.body);
        new MutationObserver(follow).observe(document.body, {
            childList: true, characterData: true, subtree: true, attributes: true, attributeFilter: ATTRIBUTES,
        });
    });
})();
