// The viewer of predicted hands: meshes in the camera frame of their picture (x right, y down, z
// forward, metres), drawn by WebGL 2. Everything it shows is in the page.
"use strict";

const $ = (id) => document.getElementById(id);
const page = JSON.parse($("page").textContent);
const scripts = [...document.querySelectorAll("script.item")];
const COLOURS = { right: [0.59, 0.76, 1.0], left: [1.0, 0.75, 0.51] };
const BONES = Array.from({ length: 20 }, (_, i) => [i % 4 ? i : 0, i + 1]);
const FINGERS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00"];
const MODES = ["shaded", "normals", "photo"];

const state = { item: 0, mode: 0, hidden: new Set(), skeleton: true, playing: false };
const view = { turn: null, target: [0, 0, 0], distance: 1 };
let item = null; // what scripts[state.item] holds, decoded
let photo = null; // its picture, once loaded

// ---- data -------------------------------------------------------------------------------------

function bytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

function decode(script) {
  const data = JSON.parse(script.textContent);
  for (const hand of data.hands) {
    const levels = new Uint16Array(bytes(hand.vertices).buffer);
    hand.points = Float32Array.from(levels, (v, i) => hand.low[i % 3] + v * hand.step);
    hand.normals = normals(hand.points, faces[hand.side]);
    hand.key = page.kind === "video" ? `track ${hand.track}` : `hand ${hand.track}`;
  }
  return data;
}

const faces = {};
for (const side in page.faces) faces[side] = new Uint32Array(bytes(page.faces[side]).buffer);

// Sums of the faces' normals, weighted by their areas: the cross product does both.
function normals(p, f) {
  const n = new Float32Array(p.length);
  for (let i = 0; i < f.length; i += 3) {
    const [a, b, c] = [3 * f[i], 3 * f[i + 1], 3 * f[i + 2]];
    const u = [0, 1, 2].map((k) => p[b + k] - p[a + k]);
    const v = [0, 1, 2].map((k) => p[c + k] - p[a + k]);
    const w = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
    for (const corner of [a, b, c]) for (let k = 0; k < 3; k++) n[corner + k] += w[k];
  }
  return n;
}

// ---- drawing ----------------------------------------------------------------------------------

const canvas = $("scene");
const gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true });
if (!gl) $("status").textContent = "This browser has no WebGL 2: the 3D view stays empty.";

const VERTEX = `#version 300 es
uniform mat3 turn; uniform vec3 target; uniform vec3 lens; // x, y of clip per tangent; distance
in vec3 point; in vec3 normal; out vec3 n; out vec3 place; out vec3 original;
void main() {
  vec3 q = turn * (point - target) + vec3(0.0, 0.0, lens.z);
  float near = 0.01 * lens.z, far = 100.0 * lens.z;
  n = turn * normal; place = point; original = normal;
  gl_Position = vec4(lens.x * q.x, -lens.y * q.y,
                     (q.z * (far + near) - 2.0 * far * near) / (far - near), q.z);
}`;
const FRAGMENT = `#version 300 es
precision highp float;
uniform int mode; uniform vec3 colour; uniform sampler2D photo; uniform vec4 k; uniform vec2 size;
in vec3 n; in vec3 place; in vec3 original; out vec4 shown;
void main() {
  vec3 m = normalize(n);
  float light = 0.28 + 0.72 * max(dot(m, normalize(vec3(-0.48, -0.6, -0.64))), 0.0);
  vec3 base = colour;
  if (mode == 1) { shown = vec4(0.5 + 0.5 * m * vec3(1.0, -1.0, -1.0), 1.0); return; }
  if (mode == 2) {
    vec2 uv = (k.xy * place.xy / place.z + k.zw) / size;
    bool seen = dot(normalize(original), normalize(place)) < -0.15;
    if (seen && all(greaterThan(uv, vec2(0.0))) && all(lessThan(uv, vec2(1.0)))) {
      shown = vec4(texture(photo, uv).rgb, 1.0); return;
    }
    base = vec3(0.5);
  }
  shown = vec4(base * light, 1.0);
}`;

function program(sources) {
  const made = gl.createProgram();
  for (const [kind, source] of sources) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw gl.getShaderInfoLog(shader);
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  return made;
}

const drawn = gl && program([[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]);
const uniform = (name) => gl.getUniformLocation(drawn, name);
const buffers = gl && { point: gl.createBuffer(), normal: gl.createBuffer() };
const index = gl && gl.createBuffer();
const texture = gl && gl.createTexture();

function feed(name, values) {
  const place = gl.getAttribLocation(drawn, name);
  gl.bindBuffer(gl.ARRAY_BUFFER, buffers[name]);
  gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
  gl.enableVertexAttribArray(place);
  gl.vertexAttribPointer(place, 3, gl.FLOAT, false, 0, 0);
}

function draw() {
  if (!gl || !item) return;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(canvas.clientHeight * ratio);
  gl.viewport(0, 0, canvas.width, canvas.height);
  gl.clearColor(0.133, 0.149, 0.169, 1);
  gl.enable(gl.DEPTH_TEST);
  gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
  gl.useProgram(drawn);
  const zoom = 2.2, narrow = Math.min(canvas.width, canvas.height);
  gl.uniform3f(uniform("lens"), (zoom * narrow) / canvas.width, (zoom * narrow) / canvas.height, view.distance);
  gl.uniformMatrix3fv(uniform("turn"), true, view.turn.flat());
  gl.uniform3fv(uniform("target"), view.target);
  gl.uniform4fv(uniform("k"), item.k);
  gl.uniform2f(uniform("size"), item.size[1], item.size[0]);
  gl.uniform1i(uniform("mode"), state.mode === 2 && !photo ? 0 : state.mode);
  for (const hand of visible()) {
    feed("point", hand.points);
    feed("normal", hand.normals);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, index);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, faces[hand.side], gl.DYNAMIC_DRAW);
    gl.uniform3fv(uniform("colour"), COLOURS[hand.side]);
    gl.drawElements(gl.TRIANGLES, faces[hand.side].length, gl.UNSIGNED_INT, 0);
  }
}

function drawPhoto() {
  const [height, width] = item.size, target = $("photo"), pen = target.getContext("2d");
  [target.width, target.height] = photo ? [photo.naturalWidth, photo.naturalHeight] : [width, height];
  if (photo) pen.drawImage(photo, 0, 0);
  const scale = target.width / width;
  if (!state.skeleton) return;
  for (const hand of visible()) {
    const xy = hand.joints.map(([x, y, z]) =>
      [scale * (item.k[0] * x / z + item.k[2]), scale * (item.k[1] * y / z + item.k[3])]);
    pen.lineWidth = Math.max(1.5, target.width / 350);
    BONES.forEach(([a, b], i) => {
      pen.strokeStyle = FINGERS[Math.floor(i / 4)];
      pen.beginPath(); pen.moveTo(...xy[a]); pen.lineTo(...xy[b]); pen.stroke();
    });
  }
}

// ---- what is shown ----------------------------------------------------------------------------

const visible = () => item.hands.filter((hand) => !state.hidden.has(hand.key));

function frame() {
  const low = [1 / 0, 1 / 0, 1 / 0], high = [-1 / 0, -1 / 0, -1 / 0];
  const hands = visible().length ? visible() : item.hands;
  for (const hand of hands) hand.points.forEach((v, i) => {
    low[i % 3] = Math.min(low[i % 3], v); high[i % 3] = Math.max(high[i % 3], v);
  });
  if (!hands.length) return;
  view.target = low.map((v, i) => (v + high[i]) / 2);
  view.distance = 1.45 * Math.hypot(...low.map((v, i) => high[i] - v)) || 1;
}

function reset() {
  view.turn = [[1, 0, 0], [0, 1, 0], [0, 0, 1]];
  frame();
  draw();
}

function show(number, keep = false) {
  state.item = Math.max(0, Math.min(scripts.length - 1, number));
  item = decode(scripts[state.item]);
  const picture = new Image();
  const wanted = state.item;
  picture.onload = () => {
    if (wanted !== state.item) return;
    photo = picture;
    if (gl) {
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, picture);
      for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, name, gl.CLAMP_TO_EDGE);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR);
    }
    drawPhoto();
    draw();
  };
  picture.src = item.image;
  $("name").textContent = item.name + (item.seconds === null ? "" : ` · ${item.seconds.toFixed(2)} s`);
  $("slider").value = state.item;
  document.querySelectorAll("#grid img").forEach((x, i) => x.classList.toggle("chosen", i === state.item));
  listHands();
  if (keep && view.turn) draw(); else reset();
}

function listHands() {
  const rows = item.hands.map((hand) => {
    const label = document.createElement("label"), box = document.createElement("input");
    const swatch = document.createElement("span");
    label.className = "hand";
    swatch.className = "swatch";
    swatch.style.background = `rgb(${COLOURS[hand.side].map((v) => 255 * v)})`;
    box.type = "checkbox";
    box.checked = !state.hidden.has(hand.key);
    box.onchange = () => {
      state.hidden[box.checked ? "delete" : "add"](hand.key);
      if (page.kind !== "video") frame();
      draw();
      drawPhoto();
    };
    label.append(box, swatch, `${hand.key}, ${hand.side}`);
    return label;
  });
  $("hands").replaceChildren(...rows);
  if (!rows.length) $("hands").textContent = "no hand here";
}

// ---- controls ---------------------------------------------------------------------------------

const times = (a, b) => a.map((row) => [0, 1, 2].map((j) => row[0] * b[0][j] + row[1] * b[1][j] + row[2] * b[2][j]));

function orbit(dx, dy) {
  const [cx, sx, cy, sy] = [Math.cos(dx), Math.sin(dx), Math.cos(dy), Math.sin(dy)];
  const yaw = [[cx, 0, -sx], [0, 1, 0], [sx, 0, cx]], pitch = [[1, 0, 0], [0, cy, -sy], [0, sy, cy]];
  view.turn = times(pitch, times(yaw, view.turn));
}

function pan(dx, dy) {
  const step = view.distance / (1.1 * Math.min(canvas.clientWidth, canvas.clientHeight));
  view.target = view.target.map((v, i) => v - step * (dx * view.turn[0][i] + dy * view.turn[1][i]));
}

const pointers = new Map();
canvas.addEventListener("pointerdown", (e) => { pointers.set(e.pointerId, e); canvas.setPointerCapture(e.pointerId); });
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (e) => pointers.delete(e.pointerId));
canvas.addEventListener("pointermove", (e) => {
  const before = pointers.get(e.pointerId);
  if (!before) return;
  const [dx, dy] = [e.clientX - before.clientX, e.clientY - before.clientY];
  if (pointers.size === 2) {
    const other = [...pointers.values()].find((p) => p.pointerId !== e.pointerId);
    const span = (p) => Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY) || 1;
    view.distance *= span(before) / span(e);
    pan(dx / 2, dy / 2);
  } else if (e.shiftKey || e.buttons & 2) pan(dx, dy);
  else orbit(dx / 150, dy / 150);
  pointers.set(e.pointerId, e);
  draw();
});
canvas.addEventListener("contextmenu", (e) => e.preventDefault());
canvas.addEventListener("dblclick", reset);
canvas.addEventListener("wheel", (e) => { e.preventDefault(); view.distance *= Math.exp(e.deltaY / 900); draw(); }, { passive: false });
window.addEventListener("resize", draw);
window.addEventListener("keydown", (e) => {
  if (e.key === "ArrowRight") show(state.item + 1, page.kind === "video");
  if (e.key === "ArrowLeft") show(state.item - 1, page.kind === "video");
});

$("reset").onclick = reset;
$("skeleton").onchange = (e) => { state.skeleton = e.target.checked; drawPhoto(); };
const buttons = MODES.map((name, i) => {
  const button = document.createElement("button");
  button.textContent = name;
  button.onclick = () => { state.mode = i; press(); draw(); };
  return button;
});
const press = () => buttons.forEach((b, i) => b.setAttribute("aria-pressed", i === state.mode));
$("modes").append(...buttons);
press();

function play() {
  if (!state.playing) return;
  show(state.item + 1 < scripts.length ? state.item + 1 : 0, true);
  setTimeout(play, 1000 * page.period);
}

if (page.kind === "video") {
  $("slider").max = Math.max(0, scripts.length - 1);
  $("slider").oninput = (e) => show(Number(e.target.value), true);
  $("play").onclick = () => { state.playing = !state.playing; $("play").textContent = state.playing ? "pause" : "play"; play(); };
} else {
  $("grid").append(...scripts.map((script, i) => {
    const thumbnail = new Image();
    const data = JSON.parse(script.textContent);
    [thumbnail.src, thumbnail.alt, thumbnail.title] = [data.image, data.name, data.name];
    thumbnail.onclick = () => show(i);
    return thumbnail;
  }));
}
// #item=3&mode=photo opens the page there.
const asked = new URLSearchParams(location.hash.slice(1));
state.mode = Math.max(0, MODES.indexOf(asked.get("mode")));
press();
if (scripts.length) show(Number(asked.get("item")) || 0);
else $("status").textContent = "No hands were found.";
