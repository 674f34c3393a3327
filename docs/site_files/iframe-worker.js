// Search of the site from files alone: browsers start no Worker for a page of file://, so the theme's search runs in a
// frame that speaks as a Worker does. The theme looks for the name IFrameWorker.
class IFrameWorker extends EventTarget {
  constructor(url) {
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    document.documentElement.append(frame);
    this.inside = frame.contentWindow;
    this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
    this.inside.importScripts = (...urls) => Promise.all(urls.map((each) => this.script(each)));
    this.ready = this.script(url);
  }

  script(url) {
    return new Promise((done, failed) => {
      const script = this.inside.document.createElement("script");
      Object.assign(script, { src: url, onload: done, onerror: failed });
      this.inside.document.body.append(script);
    });
  }

  postMessage(data) {
    this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })));
  }
}

if (location.protocol === "file:") Object.assign(window, { IFrameWorker, Worker: IFrameWorker });
