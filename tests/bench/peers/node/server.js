// busboy, as its documentation has it, with back-pressure: a part waits for its file or for the destination.
'use strict';

const busboy = require('busboy');
const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const path = require('path');
const { once } = require('events');
const { finished } = require('stream/promises');
const { parseArgs } = require('util');

const { values: options } = parseArgs({
  options: {
    port: { type: 'string' },
    root: { type: 'string' },
    destination: { type: 'string' },
    fsync: { type: 'boolean', default: false },
  },
});

const BOUNDARY = 'busboy-5b0e6c41d2f84f1b';
const OPEN_FILES = 64; // of parts that are whole but not yet on disk

const agent = new http.Agent({ keepAlive: true });

function answer(res, status, body) {
  res.writeHead(status, { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) });
  res.end(body);
}

function discard(req, res) {
  const parts = [];
  const form = busboy({ headers: req.headers, limits: { parts: Infinity } });
  form.on('file', (name, stream, info) => {
    const entry = { name, filename: info.filename, size: 0 };
    parts.push(entry);
    stream.on('data', (chunk) => { entry.size += chunk.length; });
  });
  form.on('error', (error) => answer(res, 400, String(error)));
  form.on('close', () => answer(res, 201, JSON.stringify({ parts })));
  req.pipe(form);
}

function disk(req, res) {
  const parts = [];
  const directory = path.join(options.root, crypto.randomUUID());
  fs.mkdirSync(directory);
  const form = busboy({ headers: req.headers, limits: { parts: Infinity } });
  const writing = [];
  let open = 0;
  form.on('file', (name, stream, info) => {
    const entry = { name, filename: info.filename, size: 0 };
    const file = fs.createWriteStream(path.join(directory, String(parts.length)), { flags: 'wx', flush: options.fsync });
    parts.push(entry);
    stream.on('data', (chunk) => { entry.size += chunk.length; });
    stream.pipe(file);
    if (++open === OPEN_FILES) req.unpipe(form);
    writing.push(finished(file).then(() => {
      if (open-- === OPEN_FILES) req.pipe(form);
    }));
  });
  form.on('error', (error) => answer(res, 400, String(error)));
  form.on('close', async () => {
    await Promise.all(writing);
    if (options.fsync) await syncDirectory(directory);
    answer(res, 201, JSON.stringify({ parts }));
  });
  req.pipe(form);
}

async function syncDirectory(directory) {
  const handle = await fs.promises.open(directory, 'r');
  await handle.sync();
  await handle.close();
}

function packed(req, res, { keep }) {
  const parts = [];
  const directory = keep ? path.join(options.root, crypto.randomUUID()) : null;
  if (keep) fs.mkdirSync(directory);
  const upstream = http.request(options.destination, {
    method: 'POST', agent, headers: { 'Content-Type': `multipart/form-data; boundary=${BOUNDARY}` },
  });
  upstream.setNoDelay(true);
  upstream.on('error', (error) => answer(res, 502, String(error)));
  upstream.on('response', async (response) => {
    const chunks = [];
    for await (const chunk of response) chunks.push(chunk);
    if (keep) answer(res, response.statusCode, JSON.stringify({ parts }));
    else answer(res, response.statusCode, Buffer.concat(chunks).toString());
  });

  const form = busboy({ headers: req.headers, limits: { parts: Infinity } });
  let pending = 0;
  let last = Promise.resolve(); // parts go out one after the other
  form.on('file', (name, stream, info) => {
    const entry = { name, filename: info.filename, size: 0 };
    const index = parts.length;
    parts.push(entry);
    if (++pending === OPEN_FILES) req.unpipe(form);
    last = last.then(async () => {
      const file = keep ? fs.createWriteStream(path.join(directory, String(index)), { flags: 'wx' }) : null;
      upstream.write(
        `--${BOUNDARY}\r\nContent-Disposition: form-data; name="${name}"; filename="${info.filename}"\r\n`
        + `Content-Type: ${info.mimeType}\r\n\r\n`);
      for await (const chunk of stream) {
        entry.size += chunk.length;
        const waits = [];
        if (file !== null && !file.write(chunk)) waits.push(once(file, 'drain'));
        if (!upstream.write(chunk)) waits.push(once(upstream, 'drain'));
        if (waits.length) await Promise.all(waits);
      }
      if (file !== null) {
        file.end();
        await finished(file);
      }
      upstream.write('\r\n');
      if (pending-- === OPEN_FILES) req.pipe(form);
    });
  });
  form.on('error', (error) => { upstream.destroy(); answer(res, 400, String(error)); });
  form.on('close', async () => {
    await last;
    upstream.end(`--${BOUNDARY}--\r\n`);
  });
  req.pipe(form);
}

const handlers = {
  '/discard': discard,
  '/disk': disk,
  '/relay': (req, res) => packed(req, res, { keep: false }),
  '/both': (req, res) => packed(req, res, { keep: true }),
};

http.createServer({ requestTimeout: 0 }, (req, res) => handlers[req.url](req, res))
  .listen(Number(options.port), '127.0.0.1');
