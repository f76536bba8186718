// Generate, Interrupt and Skip; the bar and the preview while a job runs.

/* exported submitTask taskFinished requestProgress showSubmitButtons randomId */

const runningTasks = {};
const progressEnds = {};

function randomId() {
    return `task(${Math.random().toString(36).slice(2, 9)}${Math.random().toString(36).slice(2, 9)})`;
}

const shownButtons = {};

function drawSubmitButtons() {
    for (const [id, shown] of Object.entries(shownButtons)) {
        const display = shown ? 'block' : 'none';
        const element = document.getElementById(id);
        if (element && element.style.display !== display) element.style.display = display;
    }
}

function setSubmitButtonsVisibility(tab, interrupt, skip, interrupting) {
    shownButtons[`${tab}_interrupt`] = interrupt;
    shownButtons[`${tab}_skip`] = skip;
    shownButtons[`${tab}_interrupting`] = interrupting;
    drawSubmitButtons();
}

onUiUpdate(drawSubmitButtons);

function showSubmitButtons(tab, show) {
    setSubmitButtonsVisibility(tab, !show, !show, false);
    const generate = document.getElementById(`${tab}_generate`);
    if (generate) generate.classList.toggle('is-running', !show);
}

function showSubmitInterruptingPlaceholder(tab) {
    setSubmitButtonsVisibility(tab, false, true, true);
}

/** Called with the inputs of Generate before they are sent: the first one becomes the new task's id. */
function submitTask(tab, inputs) {
    const task = randomId();
    runningTasks[tab] = task;
    showSubmitButtons(tab, false);
    requestProgress(task, document.getElementById(`${tab}_gallery_container`), document.getElementById(`${tab}_gallery`),
        () => {
            if (runningTasks[tab] === task) taskFinished(tab);
        });
    return [task, ...inputs.slice(1)];
}

function taskFinished(tab) {
    const task = runningTasks[tab];
    delete runningTasks[tab];
    showSubmitButtons(tab, true);
    progressEnds[task]?.();
}

function tellTask(tab, what) {
    const task = runningTasks[tab];
    if (task) postJson(`/internal/${what}`, {id_task: task}).catch((error) => console.error(error));
}

async function postJson(address, body) {
    const answer = await fetch(address, {
        method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body),
    });
    if (!answer.ok) throw new Error(`${address}: ${answer.status}`);
    return answer.json();
}

function timeLeft(seconds) {
    if (seconds >= 60) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s left`;
    return `${Math.max(Math.round(seconds), 1)} s left`;
}

/** Shows bar and preview over `gallery` until the task ends, then calls `atEnd`. */
function requestProgress(task, container, gallery, atEnd, onProgress, givenUpAfter = 40) {
    const bar = document.createElement('div');
    bar.className = 'progressDiv';
    bar.setAttribute('role', 'progressbar');
    const filled = document.createElement('div');
    filled.className = 'progress';
    bar.append(filled);
    const preview = document.createElement('div');
    preview.className = 'livePreview';
    container.prepend(bar);
    const title = document.title;
    const started = Date.now();
    let lastSeen = Date.now();
    let shownPreview = -1;
    let wasActive = false;

    let ended = false;
    const end = () => {
        if (ended) return;
        ended = true;
        delete progressEnds[task];
        document.title = title;
        bar.remove();
        preview.remove();
        atEnd();
    };

    progressEnds[task] = end;

    const show = (answer) => {
        if (ended) return;
        const share = answer.progress ?? 0;
        const percent = Math.round(share * 100);
        filled.style.width = `${Math.max(share * 100, 0.5)}%`;
        let text = answer.queued ? (answer.textinfo || 'In queue') : 'Starting ...';
        if (answer.active && share > 0) {
            text = `${percent}%` + (answer.eta !== null && answer.eta !== undefined ? ` · ${timeLeft(answer.eta)}` : '');
        }
        filled.textContent = text;
        bar.setAttribute('aria-valuenow', percent);
        document.title = answer.active && percent > 0 ? `[${percent}%] ${title}` : title;
        if (answer.live_preview) {
            shownPreview = answer.id_live_preview;
            const image = document.createElement('img');
            image.alt = 'preview';
            image.onload = () => {
                if (!preview.isConnected && bar.isConnected) container.append(preview);
                preview.replaceChildren(image);
            };
            image.src = answer.live_preview;
        }
    };

    const ask = async () => {
        if (ended) return;
        if (!Object.values(runningTasks).includes(task) && wasActive) return end();
        try {
            const answer = await postJson('/internal/progress', {id_task: task, id_live_preview: shownPreview});
            lastSeen = Date.now();
            wasActive = wasActive || answer.active;
            if (answer.completed) return end();
            if (!answer.active && !answer.queued && (wasActive || Date.now() - started > 1000 * givenUpAfter)) return end();
            show(answer);
            if (onProgress) onProgress(answer);
        } catch (error) {
            if (Date.now() - lastSeen > 1000 * givenUpAfter) return end();
        }
        if (!Object.values(runningTasks).includes(task)) return end();
        setTimeout(ask, Date.now() - started < 3000 ? 150 : (Number(opts.live_preview_refresh_period) || 1000));
    };
    setTimeout(ask, 50);
}

// on the document, since gradio may draw a button again at any time
document.addEventListener('click', (event) => {
    const button = event.target.closest?.('button[id]');
    const found = button && /^(txt2img|img2img)_(interrupt|interrupting|skip)$/.exec(button.id);
    if (!found) return;
    const [, tab, name] = found;
    if (name === 'interrupt') showSubmitInterruptingPlaceholder(tab);
    tellTask(tab, name === 'skip' ? 'skip' : 'interrupt');
});

document.addEventListener('keydown', (event) => {
    const tab = get_uiCurrentTabContent()?.id.replace('tab_', '');
    if (tab !== 'txt2img' && tab !== 'img2img') return;
    const running = tab in runningTasks;
    const press = (name) => {
        document.getElementById(`${tab}_${name}`)?.click();
        event.preventDefault();
    };
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
        if (!running) press('generate');
    } else if (event.key === 'Enter' && event.altKey && running) {
        press('skip');
    } else if (event.key === 'Escape' && running) {
        press('interrupt');
    }
});
