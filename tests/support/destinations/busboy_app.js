// busboy, told what its documentation recommends: names are UTF-8, and their paths are the application's business.
'use strict';

const busboy = require('busboy');
const crypto = require('crypto');
const http = require('http');

const server = http.createServer((req, res) => {
  const parts = [];
  const answer = (status, body) => {
    const text = JSON.stringify(body);
    res.writeHead(status, { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(text) });
    res.end(text);
  };
  let form;
  try {
    form = busboy({ headers: req.headers, defParamCharset: 'utf8', preservePath: true });
  } catch (error) {
    answer(400, { error: String(error) });
    return;
  }
  form.on('file', (name, stream, info) => {
    const digest = crypto.createHash('sha256');
    const part = { name, filename: info.filename ?? null, size: 0, sha256: null };
    parts.push(part);
    stream.on('data', (chunk) => {
      part.size += chunk.length;
      digest.update(chunk);
    });
    stream.on('end', () => { part.sha256 = digest.digest('hex'); });
  });
  form.on('field', (name, value) => {
    const data = Buffer.from(value);
    const sha256 = crypto.createHash('sha256').update(data).digest('hex');
    parts.push({ name, filename: null, size: data.length, sha256 });
  });
  form.on('error', (error) => answer(400, { error: String(error) }));
  form.on('close', () => answer(200, { parts }));
  req.pipe(form);
});

server.listen(0, '127.0.0.1', () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}`);
});
