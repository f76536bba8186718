window.probeScriptRan = typeof onUiLoaded === 'function';
