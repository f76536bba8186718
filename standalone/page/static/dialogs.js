// Dialogs: parts of the page that open above it. The attribute on the body survives gradio's drawing the part again.

/* exported openDialog */

const DIALOGS = {styles_edit: 'styles_dialog'}; // by the button that opens it, in any tab
let dialogOpener = null;

function dialogIsOpen() { return document.getElementById(document.body.dataset.dialog ?? ''); }

function openDialog(id) {
    const box = document.getElementById(id);
    dialogOpener = document.activeElement;
    document.body.dataset.dialog = id;
    box.setAttribute('role', 'dialog');
    box.setAttribute('aria-modal', 'true');
    box.setAttribute('aria-label', box.querySelector('h2')?.textContent ?? id);
    for (const behind of ['tabs', 'quicksettings']) document.getElementById(behind).inert = true;
    box.tabIndex = -1;
    box.focus();
}

function closeDialog() {
    delete document.body.dataset.dialog;
    for (const behind of ['tabs', 'quicksettings']) document.getElementById(behind).inert = false;
    dialogOpener?.focus();
}

document.addEventListener('click', (event) => {
    const opened = DIALOGS[event.target.closest?.('button[id]')?.id.replace(/^(txt2img|img2img)_/, '')];
    const box = dialogIsOpen();
    if (opened) {
        openDialog(opened);
    } else if (box && (event.target.closest?.('.dialog-close') || (event.isTrusted && !event.composedPath().includes(box)))) {
        closeDialog(); // beside it, too; scripts press hidden buttons
    }
});

document.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || !dialogIsOpen()) return;
    event.stopPropagation(); // the job continues
    closeDialog();
}, true);
