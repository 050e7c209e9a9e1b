// Values at the pointer, and by keyboard. Nothing else on the page needs this.
'use strict';
const digits = (value) => value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
const show = {
  latency: (us) => us >= 1e6 ? digits(us / 1e6) + ' s' : us >= 1e3 ? digits(us / 1e3) + ' ms' : digits(us) + ' us',
  rate: (rate) => rate >= 100 ? Math.round(rate).toLocaleString('en') + '/s' : rate.toFixed(1) + '/s',
  count: (number) => Math.round(number).toLocaleString('en'),
  share: (percent) => percent > 0 && percent < .005 ? '<0.01 %' : percent.toFixed(2) + ' %',
  seconds: (at) => 'at ' + at.toFixed(at < 100 ? 1 : 0) + ' s',
  nines: (nines) => 'p' + +(100 * (1 - 10 ** -nines)).toFixed(4),
};
for (const figure of document.querySelectorAll('figure[data-lines]')) {
  const lines = JSON.parse(figure.dataset.lines);
  const across = [...new Set(lines.flat().map((point) => point[0]))].sort((a, b) => a - b);
  if (!across.length) continue;
  // A heat map has no lines that its legend could name.
  if (figure.dataset.names) {
    const list = figure.querySelector('figcaption').appendChild(document.createElement('ul'));
    list.className = 'legend';
    for (const name of figure.dataset.names.split(',')) {
      const item = list.appendChild(document.createElement('li'));
      item.append(name + ' ', document.createElement('output'));
    }
  }
  const values = figure.querySelectorAll('.legend output');
  const at = document.createElement('p');
  at.className = 'at';
  at.setAttribute('role', 'status');
  figure.querySelector('figcaption').append(at);
  let index = -1;
  const nearest = (points, x) => points.reduce((best, point) =>
    Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
  const place = (svg, x) => {
    const { from, to, left, right } = Object.fromEntries(Object.entries(svg.dataset).map(([key, value]) => [key, +value]));
    const log = figure.dataset.x === 'latency' ? Math.log10 : (value) => value;
    return left + (log(x) - log(from)) / (log(to) - log(from)) * (right - left);
  };
  const point = (next) => {
    index = next;
    const on = index >= 0;
    const x = across[index];
    for (const svg of figure.querySelectorAll('.wide svg, .narrow svg')) {
      const cursor = svg.querySelector('.cursor');
      if (!cursor) continue;
      cursor.toggleAttribute('hidden', !on);
      if (!on) continue;
      for (const end of ['x1', 'x2']) cursor.setAttribute(end, place(svg, x));
    }
    // A line that has nothing near there has no value.
    const far = across.length > 1 ? 1.5 * (across.at(-1) - across[0]) / Math.min(across.length - 1, 400) : Infinity;
    lines.forEach((points, number) => {
      const near = on && points.length ? nearest(points, x) : null;
      const there = near && (figure.dataset.x !== 'seconds' || Math.abs(near[0] - x) <= far);
      values[number].textContent = !on ? '' : there ? show[figure.dataset.y](near[1]) : '–';
    });
    at.textContent = on ? show[figure.dataset.x](x) : '';
  };
  for (const plot of figure.querySelectorAll('.wide, .narrow')) {
    const svg = plot.querySelector('svg');
    plot.classList.add('plot');
    plot.tabIndex = 0;
    plot.setAttribute('role', 'group');
    plot.setAttribute('aria-label', figure.querySelector('h2').textContent + ': the arrow keys read its values');
    plot.addEventListener('pointermove', (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      const distance = (index) => Math.abs(place(svg, across[index]) - x);
      point(across.reduce((best, _, index) => distance(index) < distance(best) ? index : best, 0));
    });
    plot.addEventListener('pointerleave', () => point(-1));
    plot.addEventListener('blur', () => point(-1));
    plot.addEventListener('keydown', (event) => {
      const last = across.length - 1;
      const moves = { ArrowLeft: Math.max(index - 1, 0), ArrowRight: Math.min(index + 1, last), Home: 0, End: last,
        Escape: -1 };
      if (!(event.key in moves)) return;
      point(moves[event.key]);
      event.preventDefault();
    });
  }
}
