// A camera's picture, and frames of it as JPEG files.

import { h } from "./dom.js";

const SIDE = 320;
const WHY = {
  NotAllowedError: "The browser was not allowed to use the camera.",
  NotFoundError: "No camera was found.",
  NotReadableError: "The camera is in use elsewhere.",
};

export class Camera {
  constructor() {
    this.video = h("video", { class: "camera", muted: true, playsInline: true });
    this.video.setAttribute("aria-label", "What the camera sees");
    this.stream = null;
    this.closed = false;
    this.frames = 0;
  }

  /** Raises an Error that says in words why there is no picture. */
  async open() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("Browsers give cameras only to pages over HTTPS or on localhost.");
    }
    try {
      const wish = { video: { width: { ideal: 640 }, facingMode: "environment" } };
      this.stream = await navigator.mediaDevices.getUserMedia(wish);
    } catch (error) {
      throw new Error(WHY[error.name] ?? `The camera does not work: ${error.message}`);
    }
    if (this.closed) return this.close();
    this.video.srcObject = this.stream;
    await this.video.play();
  }

  close() {
    this.closed = true;
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.video.srcObject = null;
  }

  /** The middle square, as it is shown; null before the first frame. */
  async file() {
    const { videoWidth: width, videoHeight: height } = this.video;
    if (!width || this.closed) return null;
    const edge = Math.min(width, height);
    const canvas = h("canvas", { width: SIDE, height: SIDE });
    canvas.getContext("2d").drawImage(
      this.video, (width - edge) / 2, (height - edge) / 2, edge, edge, 0, 0, SIDE, SIDE,
    );
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
    this.frames += 1;
    return new File([blob], `camera-${this.frames}.jpg`, { type: "image/jpeg" });
  }
}
