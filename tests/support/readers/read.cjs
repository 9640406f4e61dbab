// busboy: reads bodies as JSON, prints what it makes of the heads of their parts.
'use strict';

const busboy = require('busboy');
const fs = require('fs');

function read({ content_type, data }) {
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
    const bytes = (text) => (text === undefined ? null : Buffer.from(text, 'latin1').toString('base64'));
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
  for (const body of JSON.parse(fs.readFileSync(0))) answers.push(await read(body));
  process.stdout.write(JSON.stringify(answers));
})();
