/* DreamBooth in the browser: puts the result to use. The progress is followed as for all jobs (jobs.js). */
window.dreamboothPage = (function () {
    "use strict";

    /** Fill the prompt, choose the checkpoint if the result is one, and go to txt2img; a cascade goes to its own tab. */
    function use(usage) {
        if (!usage) return [];
        const {prompt, checkpoint, cascade} = JSON.parse(usage);
        if (cascade) return cascadePage.take(usage);
        const takeBack = steerJobs.setPrompt("txt2img", prompt);
        steerJobs.press("refresh_sd_model_checkpoint");
        const chosen = opts.sd_model_checkpoint;
        const switches = Boolean(checkpoint && typeof selectCheckpoint === "function");
        if (switches) selectCheckpoint(checkpoint);
        if (typeof switch_to_txt2img === "function") switch_to_txt2img();
        steerJobs.offerUndo(`The prompt has "${prompt}"${switches ? ", and the checkpoint is chosen" : ""}.`, () => {
            takeBack();
            if (switches && chosen) selectCheckpoint(chosen);
        });
        return [];
    }

    onUiLoaded(() => steerJobs.follow("dreambooth_panel", "dreambooth_poll", () => dreamboothPhotos.uploading()));
    return {use};
})();
