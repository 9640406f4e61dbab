// busboy: reads bodies as JSON, prints what it makes of their boundary and the heads of their parts.
'use strict';

const busboy = require('busboy');
const { parseContentType } = require('busboy/lib/utils');
const fs = require('fs');

const bytes = (text) => (text === undefined ? null : Buffer.from(text, 'latin1').toString('base64'));

function boundary({ content_type }) {
  const parsed = parseContentType(content_type);
  return bytes(parsed ? parsed.params.boundary : undefined);
}

function parts({ content_type, data }) {
  return new Promise((resolve) => {
    const parts = [];
    let form;
    try {
      form = busboy({
        headers: { 'content-type': content_type },
        defParamCharset: 'latin1', // so that the bytes can be told
        preservePath: true,
      });
    } catch (error) {
      resolve(null);
      return;
    }
    form.on('file', (name, stream, info) => {
      parts.push({ name: bytes(name), filename: bytes(info.filename) });
      stream.resume();
    });
    form.on('field', (name) => parts.push({ name: bytes(name), filename: null }));
    form.on('error', () => resolve(null));
    form.on('close', () => resolve(parts));
    form.end(Buffer.from(data, 'base64'));
  });
}

(async () => {
  const answers = [];
  for (const body of JSON.parse(fs.readFileSync(0))) {
    answers.push({ boundary: boundary(body), parts: await parts(body) });
  }
  process.stdout.write(JSON.stringify(answers));
})();
