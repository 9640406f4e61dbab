// The queue: each upload is a file, or a folder; it has two legs, and both are told by whoever knows them. The first
// one by the browser, which sends, and the second by the gateway's progress: what is "safe" is said there, not guessed.
const main = document.querySelector('main');
const page = JSON.parse(main.dataset.page), words = page.strings;
const find = (id) => document.getElementById(id);
const say = (name, values = {}) => words[name].replace(/\{(\w+)\}/g, (_, one) => values[one]);
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

const AT_ONCE = 2; // each is two connections, and browsers have six
const VERIFIED_BYTES = 64 << 20; // WebCrypto wants a file whole in memory
const FINAL = ['kept', 'failed'];
const REMEMBERED_MS = 50000; // the gateway remembers what has ended for a minute
const isPassedOn = page.kind === 'relay' || page.kind === 'opaque';
const form = find('form'), keyForm = find('key-form');
let key = ''; // in memory only
const queue = [];
let verifying = Promise.resolve(); // one after the other: each is whole in memory

const headers = (more) => (key ? { ...more, Authorization: `Bearer ${key}` } : more);
const ask = (path, accept, more) => fetch(page.prefix + path, { ...more, headers: headers({ Accept: accept }) });

function size(bytes) {
  const units = ['byte', 'kilobyte', 'megabyte', 'gigabyte', 'terabyte'];
  let unit = 0;
  for (; bytes >= 999.5 && unit < 4; unit++) bytes /= 1000;
  const format = { style: 'unit', unit: units[unit], unitDisplay: unit ? 'short' : 'long', maximumSignificantDigits: 3 };
  return new Intl.NumberFormat(page.lang, format).format(bytes);
}

function duration(seconds) {
  const [count, unit] = seconds < 90 ? [seconds, 'second'] : seconds < 5400 ? [seconds / 60, 'minute'] : [seconds / 3600, 'hour'];
  return new Intl.NumberFormat(page.lang, { style: 'unit', unit, unitDisplay: 'long' }).format(Math.max(1, Math.round(count)));
}

function ulid() {
  const digits = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';
  let time = Date.now(), text = '';
  for (let place = 0; place < 10; place++, time = Math.floor(time / 32)) text = digits[time % 32] + text;
  for (const byte of crypto.getRandomValues(new Uint8Array(16))) text += digits[byte & 31];
  return text;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ''; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const whole = (text + value).split('\n\n');
    text = whole.pop();
    for (const one of whole) if (one.startsWith('data: ')) yield JSON.parse(one.slice(6));
  }
}

function inWords(problem) {
  const known = words.problems[(problem.type || '').split('/').pop()] || problem.title || '';
  return problem.detail ? `${known} (${problem.detail})` : known;
}

function show(bar, part) {
  const percent = Math.floor(part * 100);
  if (bar.value === percent) return;
  bar.value = percent;
  bar.nextElementSibling.textContent = `${percent} %`;
}

// A link to what is kept. Where a key is needed it is a signed one, which is made when it is wanted, and soon expires.
function lead(link, id, path, what) {
  link.href = path;
  link.hidden = false;
  if (!page.key) return;
  link.onclick = async (event) => {
    event.preventDefault();
    const answer = await ask(`/uploads/${id}/links/${what}`, 'application/json');
    if (answer.ok) location.assign((await answer.json()).url);
    else find('said').textContent = inWords(await answer.json());
  };
}

class Upload {
  constructor(files) {
    this.files = files; // {blob, path}
    this.bytes = files.reduce((sum, file) => sum + file.blob.size, 0);
    this.element = find('upload').content.firstElementChild.cloneNode(true);
    this.part = (name) => this.element.querySelector(`.${name}`);
    for (const file of files) {
      file.element = find('file').content.firstElementChild.cloneNode(true);
      file.part = (name) => file.element.querySelector(`.${name}`);
      file.part('name').firstElementChild.textContent = file.path;
      file.part('size').textContent = size(file.blob.size);
      this.part('files').append(file.element);
    }
    this.part('cancel').onclick = () => this.cancel();
    this.part('retry').onclick = () => this.wait();
    find('queue').append(this.element);
    this.wait();
  }

  wait() {
    Object.assign(this, { id: null, sent: 0, told: null, watching: null, isCancelled: false });
    for (const file of this.files) {
      file.part('problem').hidden = true;
      file.part('verified').textContent = file.part('sinks').textContent = '';
    }
    this.turn('waiting', '');
    queue.push(this);
    sendNext();
  }

  turn(state, text) {
    this.state = state;
    this.element.className = state;
    this.part('state').textContent = text || say(state);
    const isOver = !['waiting', 'sending', 'asking'].includes(state);
    this.part('cancel').hidden = isOver || state === 'asking';
    this.part('retry').hidden = !isOver || ['kept', 'partial'].includes(state);
    if (isOver) {
      this.watching?.abort();
      find('said').textContent = `${this.files[0].path}: ${this.part('state').textContent}`;
    }
    this.draw();
    if (isOver) sendNext();
  }

  send() {
    const most = page.max_file_bytes, number = this.files.findIndex((file) => most && file.blob.size > most);
    if (number >= 0 || (page.max_body_bytes && this.bytes > page.max_body_bytes)) {
      this.fail({ type: 'too-large', part: number });
      return;
    }
    this.id = ulid();
    this.turn('sending', say('receiving'));
    const body = new FormData(), request = (this.request = new XMLHttpRequest());
    for (const file of this.files) body.append('file', file.blob, file.path);
    request.open('POST', page.prefix + page.path);
    const sent = headers({ Accept: 'application/json', 'X-Upload-ID': this.id });
    for (const name in sent) request.setRequestHeader(name, sent[name]);
    request.upload.onprogress = request.upload.onload = (event) => {
      if (!this.watching) this.watch(this.id); // not before it is known there
      this.sent = event.total ? event.loaded / event.total : 0;
      this.draw();
    };
    request.onload = () => this.answered(request);
    request.onerror = request.onabort = () => this.settle();
    request.send(body);
  }

  cancel() {
    this.isCancelled = true;
    if (this.state === 'sending') this.request.abort();
    else {
      queue.splice(queue.indexOf(this), 1);
      this.turn('cancelled');
    }
  }

  async watch(id) {
    this.watching = new AbortController();
    const { signal } = this.watching;
    while (this.id === id && this.state === 'sending') {
      let wait = 250;
      try {
        const answer = await ask(`/uploads/${id}/progress`, 'text/event-stream', { signal });
        if (answer.status === 401 || answer.status === 403) return; // this key is not for reading
        if (answer.ok) for await (const told of events(answer.body)) this.hear(id, told);
      } catch {
        wait = 1000;
      }
      if (signal.aborted || FINAL.includes(this.told?.state)) return;
      await pause(wait);
    }
  }

  hear(id, told) {
    if (this.id !== id) return;
    this.told = told;
    if (this.state === 'sending') this.part('state').textContent = this.pace();
    this.draw();
  }

  // What goes on, how fast, and when that is over: the later of both legs.
  pace() {
    const { told } = this, state = FINAL.includes(told.state) ? 'committing' : told.state;
    const legs = [[(told.expected || this.bytes) - told.received, told.received_per_second]];
    for (const sink of told.sinks) if (sink.state !== 'dropped') legs.push([this.bytes - sink.delivered, sink.delivered_per_second]);
    const open = legs.filter(([left]) => left > 0);
    const texts = [say(state)];
    if (open.length && open.every(([, rate]) => rate > 0)) {
      texts.push(say('speed', { speed: size(Math.min(...open.map(([, rate]) => rate))) }));
      texts.push(say('left', { time: duration(Math.max(...open.map(([left, rate]) => left / rate))) }));
    }
    return texts.join(' · ');
  }

  draw() {
    let sent = this.sent * this.bytes;
    this.files.forEach((file, number) => {
      const of = file.blob.size, part = Math.min(of, Math.max(0, sent));
      sent -= of;
      show(file.part('sent'), of ? part / of : this.sent);
      const sinks = (this.told?.parts[number]?.sinks || []).filter((sink) => sink.state !== 'dropped');
      const isOver = ['kept', 'partial'].includes(this.state), isKept = isOver || (sinks.length > 0 && sinks.every((sink) => sink.state === 'kept'));
      const least = Math.min(...sinks.map((sink) => (of ? sink.delivered / of : 0)));
      show(file.part('safe'), isKept && !file.failed ? 1 : sinks.length ? Math.min(0.99, least) : 0);
      const all = this.told?.parts[number]?.sinks || [];
      file.part('sinks').textContent = all.map((sink) => `${sink.sink}: ${this.sinkInWords(sink, of)}`).join(' · ');
    });
  }

  sinkInWords(sink, of) {
    if (sink.state === 'dropped') return say('dropped');
    if (sink.state === 'kept') return '✓';
    if (sink.state === 'failed') return '✗';
    return `${of ? Math.min(99, Math.floor((sink.delivered / of) * 100)) : 0} %`;
  }

  answered(request) {
    let document = null;
    try {
      document = JSON.parse(request.responseText);
    } catch {
      // a destination's answer may be anything
    }
    if (request.status < 400) this.keep(document, request.status);
    else if (request.status === 401) {
      askForKey(words.key_wrong);
      this.fail(document || {});
    } else if (document?.title) this.fail(document);
    else if (isPassedOn) this.fail({}, say('answered', { status: request.status }));
    else this.settle(say('answered', { status: request.status })); // by a proxy in between
  }

  // Not the gateway has answered, or nobody: what became of it only the gateway knows. What it does not know is lost,
  // unless it was long ago.
  async settle(title = words.lost) {
    this.turn('asking', this.isCancelled ? say('cancel') + ' …' : '');
    const began = Date.now();
    for (let attempt = 0; attempt < 60; attempt++) {
      try {
        const answer = await ask(`/uploads/${this.id}/progress`, 'application/json');
        if (answer.status === 401 || answer.status === 403) { // this key is not for reading
          if (answer.status === 401) askForKey(words.key_wrong);
          this.fail(await answer.json(), say('unknown'));
          return;
        }
        const told = answer.ok ? await answer.json() : null;
        if (told) this.hear(this.id, told);
        if (told?.state === 'failed') {
          this.fail(told.problem);
          return;
        }
        if (told?.state === 'kept' || answer.status === 404) {
          const kept = await ask(`/uploads/${this.id}`, 'application/json');
          if (kept.ok) this.keep(await kept.json(), 201);
          else if (told) this.keep(null, 200);
          else if (kept.status === 404 && Date.now() - began > REMEMBERED_MS) break;
          else if (kept.status === 404) this.fail({ title });
          if (this.state !== 'asking') return;
        }
      } catch {
        // there is no network yet
      }
      await pause(attempt ? 1000 : 200);
    }
    this.fail({}, say('unknown'));
  }

  // `text` says what is kept, where that is not for sure nothing.
  fail(problem, text = problem.kept?.length && say('incomplete')) {
    this.told = null;
    if (this.isCancelled && !text) {
      this.turn('cancelled');
      return;
    }
    const file = this.files[problem.part] || this.files[0], inShort = inWords(problem);
    file.part('problem').textContent = inShort;
    file.part('problem').hidden = !inShort;
    this.turn('failed', text);
  }

  // `document` is the manifest, the results of a route that converts, or what a destination has answered.
  keep(document, status) {
    const results = Array.isArray(document) ? document : document?.parts || [];
    this.sent = 1;
    this.told = null;
    this.files.forEach((file, number) => {
      const part = results[number] || {}, problem = part.problem;
      file.failed = Boolean(problem);
      file.part('problem').hidden = !problem;
      if (problem) file.part('problem').textContent = inWords(problem);
      const isOurs = (one) => one?.location?.startsWith(`${page.prefix}/files/`); // a sink of one's own may say anything
      const place = [part.output, ...(part.receipts || [])].find(isOurs)?.location;
      if (place) lead(file.part('name').firstElementChild, this.id, place, part.index);
      if (place && this.files.length > 1) lead(this.part('archive'), this.id, `${page.prefix}/uploads/${this.id}/archive.zip`, 'archive.zip');
      const digest = (part.input || part).sha256;
      verifying = verifying.then(() => this.verify(file, digest)).catch(() => {}); // a file may be gone by now
    });
    const receipts = results.flatMap((part) => part.receipts || []);
    const named = (isDropped) => [...new Set(receipts.filter((one) => !one.dropped !== isDropped).map((one) => one.sink))].join(', ');
    const sinks = named(false), dropped = named(true);
    const text = isPassedOn ? say('answered', { status }) : sinks ? say('kept_in', { sinks }) : say('kept');
    const more = dropped && ` · ${dropped}: ${say('dropped')}`;
    this.turn(status === 207 ? 'partial' : 'kept', status === 207 ? '' : text + more);
  }

  async verify(file, digest) {
    if (!digest || !crypto.subtle || file.blob.size > VERIFIED_BYTES) return;
    const found = new Uint8Array(await crypto.subtle.digest('SHA-256', await file.blob.arrayBuffer()));
    const isSame = [...found].map((byte) => byte.toString(16).padStart(2, '0')).join('') === digest;
    file.part('verified').textContent = words[isSame ? 'verified' : 'differs'];
    file.part('verified').classList.toggle('wrong', !isSame);
  }
}

const uploads = [];
function sendNext() {
  const running = uploads.filter((one) => ['sending', 'asking'].includes(one.state)).length;
  if (running < AT_ONCE && queue.length && (key || !page.key)) {
    queue.shift().send();
    sendNext();
  }
}

function add(files) {
  const most = page.max_parts || files.length;
  for (let start = 0; start < files.length; start += most) uploads.push(new Upload(files.slice(start, start + most)));
  sendNext();
}

const addEach = (list) => [...list].forEach((blob) => add([{ blob, path: blob.name }]));

async function* walk(entry, above) {
  const path = above + entry.name;
  if (entry.isFile) yield { blob: await new Promise((done, failed) => entry.file(done, failed)), path };
  for (const reader = entry.isDirectory && entry.createReader(); reader; ) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) return;
    for (const one of some) yield* walk(one, path + '/');
  }
}

async function addDropped(data) {
  const entries = [...data.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) addEach(data.files);
  for (const entry of entries) {
    const files = [];
    for await (const file of walk(entry, '')) files.push(file);
    if (files.length) add(files);
  }
}

function askForKey(text) {
  key = '';
  keyForm.hidden = false;
  keyForm.querySelector('label').textContent = text;
  find('key').focus();
}

keyForm.onsubmit = (event) => {
  event.preventDefault();
  key = find('key').value.trim();
  keyForm.reset();
  keyForm.hidden = true;
  sendNext();
};
find('files').onchange = find('folder').onchange = ({ target }) => {
  if (target.id === 'files') addEach(target.files);
  else if (target.files.length) add([...target.files].map((blob) => ({ blob, path: blob.webkitRelativePath })));
  target.value = '';
};
addEventListener('dragover', (event) => {
  event.preventDefault();
  form.classList.add('over');
});
addEventListener('dragleave', () => form.classList.remove('over'));
addEventListener('drop', (event) => {
  event.preventDefault();
  form.classList.remove('over');
  addDropped(event.dataTransfer);
});
addEventListener('paste', (event) => addEach(event.clipboardData?.files || []));
addEventListener('beforeunload', (event) => {
  if (uploads.some((one) => one.state === 'sending')) event.preventDefault();
});

document.documentElement.classList.add('quiet');
for (const one of document.querySelectorAll('.js')) one.hidden = false;
for (const one of document.querySelectorAll('.no-js, #send')) one.hidden = true;
if (page.key) askForKey(words.key);
