// Generate, Interrupt and Skip; the bar and the preview while a job runs.

/* exported submitTask restoreTask taskFinished taskFailed requestProgress showSubmitButtons randomId */

const JOB_TABS = ['txt2img', 'img2img', 'extras'];
const runningTasks = {};
const progressEnds = {};
const failedTasks = new Set();
const waitingForResults = [];

const SERVER_IS_GONE = 'The server has stopped. Start it again: this page comes back by itself, with your prompt and settings.';
const JOB_IS_LOST = 'The server stopped before this job was finished. Press Generate to start it again.';
const GONE_AFTER = 4000; // milliseconds without an answer

/** Whoever knows a task's id gets its images, so it cannot be guessed. */
function randomId() {
    return `task(${Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, '0')).join('')})`;
}

// -- the running task of each tab: sessionStorage has this page's own, localStorage the last one of all pages of the browser

function thisServer() {
    return document.querySelector('meta[name="steer-server"]')?.content ?? '';
}

function keepTask(tab, task, store = localStorage) {
    runningTasks[tab] = task;
    for (const place of new Set([sessionStorage, store])) {
        try {
            place.setItem(`${tab}_task_id`, task);
            place.setItem(`${tab}_task_server`, thisServer());
        } catch { /* storage is off or full: a reload loses the job */ }
    }
}

/** The task whose results the page showed last, or '': its own, or that of the last page of the browser. */
function lastTask(tab) {
    return sessionStorage.getItem(`${tab}_last_task`) ?? localStorage.getItem(`${tab}_last_task`) ?? '';
}

function dropTask(tab) {
    const task = runningTasks[tab];
    delete runningTasks[tab];
    for (const place of [sessionStorage, localStorage]) {
        if (place.getItem(`${tab}_task_id`) === task) place.removeItem(`${tab}_task_id`);
    }
    return task;
}

/** Looks after a reload for the job that this page, or another one of the browser, has started, or for its last results. */
function findTask(tab) {
    const place = [sessionStorage, localStorage].find((store) => store.getItem(`${tab}_task_id`));
    const task = place?.getItem(`${tab}_task_id`);
    if (task) {
        runningTasks[tab] = task;
        if (place.getItem(`${tab}_task_server`) === thisServer()) {
            keepTask(tab, task, sessionStorage);
            showSubmitButtons(tab, false);
            followTask(tab, task);
        } else {
            dropTask(tab);
            sayAboutServer(JOB_IS_LOST);
        }
    }
    if (runningTasks[tab] || lastTask(tab)) waitingForResults.push(tab);
    askForResults();
}

/** Presses the hidden buttons that bring the results of found tasks, once they are there, as soon as gradio has drawn them. */
function askForResults() {
    for (const tab of waitingForResults.slice()) {
        const restore = document.getElementById(`${tab}_restore_progress`);
        if (!restore) continue;
        waitingForResults.splice(waitingForResults.indexOf(tab), 1);
        (restore.matches('button') ? restore : restore.querySelector('button')).click();
    }
}

/** Called with the input of that button. */
function restoreTask(tab) {
    return [runningTasks[tab] ?? lastTask(tab)];
}

onUiLoaded(() => JOB_TABS.forEach(findTask));
onUiUpdate(askForResults);

// -- a server that has stopped

/** One line above the tabs; an empty one takes it away. */
function sayAboutServer(sentence) {
    const shown = document.getElementById('server_line');
    if (shown?.textContent === sentence) return;
    shown?.remove();
    if (!sentence) return;
    const line = document.createElement('div');
    line.id = 'server_line';
    line.className = 'error';
    line.setAttribute('role', 'alert');
    line.textContent = sentence;
    document.getElementById('tabs').before(line);
}

/** gradio has seen it, too: it answers nothing from now on, and loads the page again when the server is back. */
onUiUpdate(() => {
    for (const toast of document.querySelectorAll('.toast-body.error')) {
        if (!toast.textContent.includes('Connection to the server was lost')) continue;
        toast.style.display = 'none';
        sayAboutServer(SERVER_IS_GONE);
        for (const tab of Object.keys(runningTasks)) showSubmitButtons(tab, true);
    }
});

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
    keepTask(tab, task);
    sayAboutServer('');
    showSubmitButtons(tab, false);
    followTask(tab, task);
    return [task, ...inputs.slice(1)];
}

function followTask(tab, task) {
    const stillHere = () => runningTasks[tab] === task;
    requestProgress(task, document.getElementById(`${tab}_gallery_container`), document.getElementById(`${tab}_gallery`), () => {
        if (stillHere()) taskFinished(tab);
    }, null, 40, (sentence, isOver) => {
        if (!stillHere()) return;
        sayAboutServer(sentence);
        showSubmitButtons(tab, Boolean(sentence));
        if (isOver) delete runningTasks[tab]; // what is kept stays: gradio is about to load the page again, and the line is due then
    });
}

function taskFinished(tab) {
    const task = dropTask(tab);
    try {
        if (task) for (const place of [sessionStorage, localStorage]) place.setItem(`${tab}_last_task`, task);
    } catch { /* storage is off or full: the gallery ends with the page */ }
    showSubmitButtons(tab, true);
    progressEnds[task]?.();
    document.dispatchEvent(new CustomEvent('steer-job-finished'));
}

/** The call that waits for the results has failed: the server refused it, or the connection broke while the job continues. */
function taskFailed(tab) {
    failedTasks.add(runningTasks[tab]);
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

/**
 * Shows bar and preview over `gallery` until the task ends, then calls `atEnd`. `tell(sentence, isOver)` hears that the server does
 * not answer, with '' that it answers again, and at the end if it came back without the task.
 */
function requestProgress(task, container, gallery, atEnd, onProgress, givenUpAfter = 40, tell = () => {}) {
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
    let wasKnown = false;
    let isGone = false;
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
        const parts = [answer.textinfo]; // which phase it is in, or the place in the queue
        if (answer.active && share > 0) {
            parts.push(`${percent}%`);
            if (answer.eta !== null && answer.eta !== undefined) parts.push(timeLeft(answer.eta));
        }
        filled.textContent = parts.filter(Boolean).join(' · ') || (answer.queued ? 'In queue' : 'Starting ...');
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
        try {
            const answer = await postJson('/internal/progress', {id_task: task, id_live_preview: shownPreview});
            if (ended) return;
            lastSeen = Date.now();
            if (isGone) tell('', false);
            isGone = false;
            const isKnown = answer.active || answer.queued;
            if (answer.completed) return end();
            if (!isKnown && wasKnown) tell(JOB_IS_LOST, true);
            if (!isKnown && (wasKnown || failedTasks.has(task) || Date.now() - started > 1000 * givenUpAfter)) return end();
            wasKnown = wasKnown || isKnown;
            show(answer);
            if (onProgress) onProgress(answer);
        } catch (error) {
            if (!isGone && Date.now() - lastSeen > GONE_AFTER) {
                isGone = true;
                tell(SERVER_IS_GONE, false);
            }
        }
        bar.hidden = preview.hidden = isGone;
        setTimeout(ask, Date.now() - started < 3000 ? 150 : (Number(opts.live_preview_refresh_period) || 1000));
    };
    setTimeout(ask, 50);
}

// on the document, since gradio may draw a button again at any time
document.addEventListener('click', (event) => {
    const button = event.target.closest?.('button[id]');
    const found = button && /^(txt2img|img2img|extras)_(interrupt|interrupting|skip)$/.exec(button.id);
    if (!found) return;
    const [, tab, name] = found;
    if (name === 'interrupt') showSubmitInterruptingPlaceholder(tab);
    tellTask(tab, name === 'skip' ? 'skip' : 'interrupt');
});

document.addEventListener('keydown', (event) => {
    const tab = get_uiCurrentTabContent()?.id.replace('tab_', '');
    if (!JOB_TABS.includes(tab)) return;
    const running = tab in runningTasks && shownButtons[`${tab}_interrupt`] !== false;
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
