// Browsers give no Worker to a page that was opened as a file. The search then runs in a hidden frame.
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      const answer = "<script>window.postMessage = message => parent.postMessage(message, '*')<\/script>";
      this.frame.srcdoc = `${answer}<script src="${new URL(url, location)}"><\/script>`;
      this.loaded = new Promise(done => this.frame.addEventListener("load", done));
      window.addEventListener("message", event => {
        if (event.source === this.frame.contentWindow)
          this.dispatchEvent(new MessageEvent("message", { data: event.data }));
      });
      document.body.append(this.frame);
    }
    postMessage(message) {
      this.loaded.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data: message })));
    }
    terminate() {
      this.frame.remove();
    }
  };
