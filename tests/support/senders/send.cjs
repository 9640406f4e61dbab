// node's own fetch and FormData. Reads {url, uploads} from standard input, prints [[status, body], ...].
'use strict';

const BOUNDARY = 'node-large-7d1b';

function form(parts) {
  const made = new FormData();
  for (const { name, filename, data } of parts) {
    const bytes = Buffer.from(data, 'base64');
    if (filename === null) made.append(name, bytes.toString());
    else made.append(name, new File([bytes], filename, { type: 'application/octet-stream' }), filename);
  }
  return { body: made };
}

// FormData would hold it: a body that is made as it is sent, and so goes out chunked
function large({ name, filename, block, count }) {
  const bytes = Buffer.from(block, 'base64');
  async function* generated() {
    yield Buffer.from(`--${BOUNDARY}\r\nContent-Disposition: form-data; name="${name}"; filename="${filename}"\r\n`
      + 'Content-Type: application/octet-stream\r\n\r\n');
    for (let number = 0; number < count; number++) {
      const piece = Buffer.from(bytes);
      piece.writeUInt32BE(number);
      yield piece;
    }
    yield Buffer.from(`\r\n--${BOUNDARY}--\r\n`);
  }
  const headers = { 'Content-Type': `multipart/form-data; boundary=${BOUNDARY}` };
  return { body: generated(), headers, duplex: 'half' };
}

(async () => {
  const given = [];
  for await (const chunk of process.stdin) given.push(chunk);
  const { url, uploads } = JSON.parse(Buffer.concat(given).toString());
  const answers = [];
  for (const upload of uploads) {
    const what = Array.isArray(upload) ? form(upload) : large(upload);
    const answer = await fetch(url, { method: 'POST', ...what });
    answers.push([answer.status, await answer.text()]);
  }
  process.stdout.write(JSON.stringify(answers));
})();
