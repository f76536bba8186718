/* DreamBooth in the browser: puts the result to use. The progress is followed as for all jobs (jobs.js). */
window.dreamboothPage = (function () {
    "use strict";

    /** Fill the prompt, choose the checkpoint if the result is one, and go to txt2img; a cascade goes to its own tab. */
    function use(usage) {
        if (!usage) return [];
        const {prompt, checkpoint, cascade} = JSON.parse(usage);
        if (cascade) return cascadePage.take(usage);
        steerJobs.setPrompt("txt2img", prompt);
        steerJobs.press("refresh_sd_model_checkpoint");
        if (checkpoint && typeof selectCheckpoint === "function") selectCheckpoint(checkpoint);
        if (typeof switch_to_txt2img === "function") switch_to_txt2img();
        return [];
    }

    onUiLoaded(() => steerJobs.follow("dreambooth_panel", "dreambooth_poll", () => dreamboothPhotos.uploading()));
    return {use};
})();
