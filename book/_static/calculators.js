// The calculators: forms by book/_ext/calculators.py, and below each an example that is kept up to date here.
// Shapes, counts and messages are those of lstm_utils.LSTMSpec; tests/test_calculator.py holds one against the other.
(() => {
  "use strict";

  const SHOWN_LAYERS = 8; // as in lstm_utils/spec.py
  const BYTES = { float32: 4n, float16: 2n, bfloat16: 2n, float64: 8n };
  const FOREIGN = ["highlight", "q"]; // what Sphinx's own search puts into an address

  class Refused extends Error {}
  const refuse = (message) => {
    throw new Refused(message);
  };

  // --- what was typed, as Python would read it ---------------------------------------------------------------------

  const NOT_FINITE = /^[+-]?(nan|inf|infinity)$/i;
  const FLOAT = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

  const read = (typed) => {
    const text = typed.trim();
    if (/^[+-]?\d+(_\d+)*$/.test(text)) return { type: "int", value: BigInt(text.replace(/[_+]/g, "")), text };
    if (FLOAT.test(text)) return { type: "float", value: Number(text), text };
    if (NOT_FINITE.test(text)) return { type: "float", value: Number(text.replace(/inf\w*/i, "Infinity")), text };
    if (text === "True" || text === "False") return { type: "bool", value: text === "True", text };
    if (text === "None") return { type: "NoneType", value: null, text };
    const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
    const escaped = text.replace(/\\/g, "\\\\").replaceAll(quote, `\\${quote}`);
    return { type: "str", value: text, text: `${quote}${escaped}${quote}` };
  };

  const received = ({ type, text }) => `got ${text} of type ${type}`;

  /** An integer argument of nn.LSTM; where bools are taken, they are 0 and 1. */
  const int = (name, typed, least, bools = false) => {
    const got = read(typed);
    if (got.type !== "int" && !(bools && got.type === "bool")) refuse(`${name} must be an int, ${received(got)}`);
    if (BigInt(got.value) < least) refuse(`${name} must be at least ${least}, got ${got.text}`);
    return BigInt(got.value);
  };

  /** A size of a call. */
  const size = (name, typed, least) => {
    const got = read(typed);
    const fits = got.type === "int" && got.value >= least;
    return fits ? got.value : refuse(`${name} must be an int of at least ${least}, got ${got.text}`);
  };

  const bool = (name, typed) => {
    const got = read(typed);
    return got.type === "bool" ? got.value : refuse(`${name} must be True or False, ${received(got)}`);
  };

  const oneOf = (name, typed, options) =>
    options.includes(typed) ? typed : refuse(`${name} must be one of ${options.join(", ")}, got ${read(typed).text}`);

  const isNumber = ({ type }) => type === "int" || type === "float";

  /** A positive amount, in thousandths. */
  const amount = (name, typed) => {
    const got = read(typed);
    const value = isNumber(got) ? Number(got.value) : NaN;
    if (!(value >= 0.001 && value <= 1e12)) refuse(`${name} must be a number from 0.001 to 10**12, got ${got.text}`);
    return BigInt(Math.round(value * 1000));
  };

  // --- numbers, as Python would print them -------------------------------------------------------------------------

  const COMMAS = new Intl.NumberFormat("en-US");
  const commas = (number) => COMMAS.format(number);
  const tuple = (sizes) => (sizes.length === 1 ? `(${sizes[0]},)` : `(${sizes.join(", ")})`);
  const counted = (number, noun) => `${commas(number)} ${noun}${Number(number) === 1 ? "" : "s"}`;
  const up = (number, by) => (number + by - 1n) / by;

  const FOUR_DIGITS = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 4, roundingMode: "halfEven" });

  /** Bytes in the largest binary unit that keeps the number at 1 or more. */
  const binary = (bytes) => {
    const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    const step = Number(bytes) && Math.min(Math.floor(Math.log2(Number(bytes)) / 10), units.length - 1);
    return `${FOUR_DIGITS.format(Number(bytes) / 1024 ** step)} ${units[step]}`;
  };

  /** A float from 0 to 1. */
  const float = (value) => {
    if (value === 0 || value === 1) return `${value}.0`;
    return value < 1e-4 ? value.toExponential().replace(/e-(\d)$/, "e-0$1") : String(value);
  };

  // --- nn.LSTM -----------------------------------------------------------------------------------------------------

  // In the order of the signature.
  const DEFAULTS = {
    input_size: null,
    hidden_size: null,
    num_layers: 1n,
    bias: true,
    batch_first: false,
    dropout: 0,
    bidirectional: false,
    proj_size: 0n,
  };

  /** The arguments of nn.LSTM, refused in the order and with the messages of LSTMSpec. */
  const lstmSpec = (typed) => {
    const spec = {
      input_size: int("input_size", typed.input_size, 1n, true),
      hidden_size: int("hidden_size", typed.hidden_size, 1n, true),
      num_layers: int("num_layers", typed.num_layers, 1n),
      bias: bool("bias", typed.bias),
      batch_first: bool("batch_first", typed.batch_first),
      bidirectional: bool("bidirectional", typed.bidirectional),
    };
    const dropout = read(typed.dropout);
    if (!isNumber(dropout)) refuse(`dropout must be a number from 0 to 1, got ${dropout.text}`);
    spec.dropout = Number(dropout.value);
    if (!(dropout.value >= 0 && dropout.value <= 1)) refuse(`dropout must lie from 0 to 1, got ${dropout.text}`);
    const projection = read(typed.proj_size);
    const none = projection.type !== "str" && projection.value !== null && Number(projection.value) === 0;
    spec.proj_size = none ? 0n : int("proj_size", typed.proj_size, 0n);
    if (spec.proj_size >= spec.hidden_size)
      refuse(
        `proj_size must be smaller than hidden_size (${spec.hidden_size}), got ${projection.text}; ` +
          "0 means no projection",
      );
    spec.directions = spec.bidirectional ? 2n : 1n;
    spec.width = spec.proj_size || spec.hidden_size; // of h
    return spec;
  };

  const lstmShapes = ({ input_size, hidden_size, num_layers, batch_first, directions, width }, steps, batch) => {
    const lead = batch === null ? [steps] : batch_first ? [batch, steps] : [steps, batch];
    const states = [num_layers * directions, ...(batch === null ? [] : [batch])];
    return {
      input: [...lead, input_size],
      output: [...lead, directions * width],
      h_n: [...states, width],
      c_n: [...states, hidden_size],
    };
  };

  /** The tensors of one direction of a layer, whose rows are stacked i, f, g, o. */
  const cellParameters = ({ input_size, hidden_size, bias, proj_size, directions, width }, layer) => {
    const gates = 4n * hidden_size;
    return {
      weight_ih: [gates, layer ? directions * width : input_size],
      weight_hh: [gates, width],
      ...(bias && { bias_ih: [gates], bias_hh: [gates] }),
      ...(proj_size && { weight_hr: [proj_size, hidden_size] }),
    };
  };

  const numbersIn = (shape) => shape.reduce((product, size) => product * size, 1n);

  /** Over all tensors, of layer 0 and of the layers above it, which are all alike. */
  const total = (spec, cost) => {
    const [first, above] = [0, 1].map((layer) =>
      Object.entries(cellParameters(spec, layer)).reduce((sum, [name, shape]) => sum + cost(name, shape), 0n),
    );
    return spec.directions * (first + (spec.num_layers - 1n) * above);
  };

  const numParameters = (spec) => total(spec, (_, shape) => numbersIn(shape));

  const flops = (spec, steps, batch) =>
    steps * batch * total(spec, (name, shape) => (name.startsWith("weight") ? 2n * numbersIn(shape) : 0n));

  const ways = (spec) => (spec.bidirectional ? ["", "_reverse"] : [""]);

  const parameterRows = (spec) => {
    const rows = [];
    for (let layer = 0; layer < Math.min(Number(spec.num_layers), SHOWN_LAYERS); layer++)
      for (const way of ways(spec))
        for (const [name, shape] of Object.entries(cellParameters(spec, layer)))
          rows.push([`${name}_l${layer}${way}`, tuple(shape), commas(numbersIn(shape))]);
    const more = spec.num_layers - BigInt(SHOWN_LAYERS);
    if (more > 0n)
      rows.push([`… and ${commas(more)} more layers, each with the shapes of layer ${SHOWN_LAYERS - 1}`, "", ""]);
    return rows;
  };

  const lstmCode = (spec) => {
    const words = { true: "True", false: "False" };
    const python = (value) => (typeof value === "number" ? float(value) : (words[value] ?? value));
    const given = Object.keys(DEFAULTS).filter((name) => spec[name] !== DEFAULTS[name]);
    return `nn.LSTM(${given.map((name) => `${name}=${python(spec[name])}`).join(", ")})`;
  };

  const lstm = (typed) => {
    const spec = lstmSpec(typed);
    const steps = size("seq_len", typed.seq_len, 1n);
    const unbatched = bool("unbatched", typed.unbatched);
    const batch = unbatched ? null : size("batch_size", typed.batch_size, 0n);
    const dtype = oneOf("dtype", typed.dtype, Object.keys(BYTES));
    const shapes = lstmShapes(spec, steps, batch);
    const parameters = numParameters(spec);
    const bytes = parameters * BYTES[dtype];
    const drawn = Object.entries(shapes).map(([name, shape]) => `${name} ${tuple(shape)}`);
    return {
      summary: `${counted(parameters, "parameter")}, ${binary(bytes)} as ${dtype}; output ${tuple(shapes.output)}`,
      code: lstmCode(spec),
      tables: [
        [
          ["parameters", commas(parameters)],
          ["memory", `${counted(bytes, "byte")}, ${binary(bytes)}`],
          ["training", `${binary(4n * bytes)} with gradients and both moments of Adam`],
          ["forward", `${commas(flops(spec, steps, batch ?? 1n))} FLOPs in matrix products`],
        ],
        Object.entries(shapes).map(([name, shape]) => [name, tuple(shape)]),
        parameterRows(spec),
      ],
      disabled: unbatched ? ["batch_size"] : [],
      highest: { proj_size: spec.hidden_size - 1n },
      drawing: {
        label: `${drawn.join(", ")}; ${counted(spec.num_layers, "layer")} of ${counted(spec.directions, "direction")}`,
        draw: (width) => drawLstm(spec, shapes, steps, batch, width),
      },
    };
  };

  // --- the drawing -------------------------------------------------------------------------------------------------

  const GATES = ["i", "f", "g", "o"];
  const LEAST = 3; // no side is drawn shorter, in pixels
  const GAP = 14;
  const LINE = 15; // of text
  const CAPTION =
    `Weights by gate: ${GATES.map((gate) => `<span class="calc-key calc-gate-${gate}">${gate}</span>`).join(" ")}. ` +
    "Time runs to the right, features downwards, the batch into the depth. Sequences and weights have one scale " +
    `each; no side is drawn shorter than ${LEAST} pixels.`;

  const element = (kind, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", kind);
    Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
    if (text !== undefined) node.textContent = text;
    return node;
  };

  const drawLstm = (spec, shapes, steps, batch, width) => {
    const svg = element("svg", { width, role: "img" });
    const put = (kind, attributes, text) => svg.append(element(kind, attributes, text));
    const write = (x, y, room, kind, text) => {
      const squeezed = text.length * 7.3 > room && { textLength: room, lengthAdjust: "spacingAndGlyphs" };
      put("text", { x, y: y + 11, class: kind, ...squeezed }, text);
      return y + LINE;
    };
    const caption = (x, y, room, name, sizes) =>
      write(x, write(x, y, room, "calc-name", name), room, "calc-shape", sizes) + 4;
    const pixels = (scale) => (size) => Math.max(LEAST, Number(size) * scale);

    // A sequence: time to the right, features upwards, the batch into the depth.
    const box = (x, y, scale, long, tall, parts, rows = 1n) => {
      const px = pixels(scale);
      const [w, h] = [px(long), px(tall)];
      const depth = batch === null ? 0 : Math.max(LEAST, Number(batch) * scale) * 0.4;
      const top = y + depth;
      if (depth) {
        put("path", { class: "calc-side", d: `M${x} ${top}l${depth} ${-depth}h${w}l${-depth} ${depth}z` });
        put("path", { class: "calc-side", d: `M${x + w} ${top}l${depth} ${-depth}v${h}l${-depth} ${depth}z` });
      }
      put("rect", { class: "calc-front", x, y: top, width: w, height: h });
      for (let part = 1; part < parts; part++)
        put("path", { class: "calc-cut", d: `M${x} ${top + (h * part) / parts}h${w}` });
      for (let row = 1; row < (rows <= 16n ? Number(rows) : 0); row++)
        put("path", { class: "calc-cut", d: `M${x + (w * row) / Number(rows)} ${top}v${h}` });
      return top + h;
    };
    const stacked = spec.num_layers * spec.directions;
    const column = (width - 2 * GAP) / 3;
    const features = [spec.input_size, spec.directions * spec.width, spec.hidden_size].map(Number);
    const deep = 0.4 * Number(batch ?? 0n);
    const scale = Math.min(
      (column - 2 * LEAST) / (Math.max(Number(steps), Number(stacked)) + deep),
      90 / (Math.max(...features) + deep),
    );

    let y = caption(0, 0, width, "input", tuple(shapes.input));
    y = box(0, y, scale, steps, spec.input_size, 1) + GAP;

    const cells = [0, 1].slice(0, spec.num_layers > 1n ? 2 : 1).map((layer) => cellParameters(spec, layer));
    const kinds = Object.keys(cells[0]).filter((kind) => kind !== "bias_hh");
    const room = (width - (kinds.length - 1) * GAP) / kinds.length;
    const widths = ({ weight_ih, weight_hh, weight_hr = [0n, 1n] }) => [weight_ih[1], weight_hh[1], weight_hr[1]];
    const widest = cells.flatMap(widths).map(Number);
    const px = pixels(Math.min(room / Math.max(...widest), 110 / (4 * Number(spec.hidden_size))));
    const strips = (x, y, w) =>
      GATES.forEach((gate, place) => {
        const h = px(spec.hidden_size);
        put("rect", { class: `calc-gate calc-gate-${gate}`, x, y: y + place * h, width: w, height: h });
        if (h >= 13 && w >= 13)
          put("text", { class: "calc-letter", x: x + w / 2, y: y + place * h + h / 2 }, gate);
      });
    cells.forEach((cell, layer) =>
      ways(spec).forEach((way) => {
        const direction = spec.bidirectional ? (way ? ", reverse" : ", forward") : "";
        const alike = layer === 1 && spec.num_layers > 2n ? ` (and ${commas(spec.num_layers - 2n)} more like it)` : "";
        y = write(0, y, width, "calc-layer", `layer ${layer}${direction}${alike}`) + 4;
        kinds.forEach((kind, place) => {
          const x = place * (room + GAP);
          const sizes = tuple(cell[kind]);
          const biases = kind === "bias_ih";
          const top = caption(x, y, room, biases ? "2 biases" : kind, sizes);
          if (kind === "weight_hr")
            put("rect", { class: "calc-front", x, y: top, width: px(cell[kind][1]), height: px(cell[kind][0]) });
          else if (biases) [0, 10].forEach((shift) => strips(x + shift, top, 5));
          else strips(x, top, px(cell[kind][1]));
        });
        y += 2 * LINE + 4 + Math.max(4 * px(spec.hidden_size), spec.proj_size ? px(spec.proj_size) : 0) + GAP;
      }),
    );

    const ends = [
      ["output", steps, spec.directions * spec.width, Number(spec.directions), 1n],
      ["h_n", stacked, spec.width, 1, stacked],
      ["c_n", stacked, spec.hidden_size, 1, stacked],
    ].map(([name, long, tall, parts, rows], place) => {
      const x = place * (column + GAP);
      return box(x, caption(x, y, column, name, tuple(shapes[name])), scale, long, tall, parts, rows);
    });
    svg.setAttribute("height", Math.max(...ends) + 2);
    return svg;
  };

  // --- CTC ---------------------------------------------------------------------------------------------------------

  const labelsOf = (typed) => {
    if (oneOf("given", typed.given, ["characters", "numbers", "counts"]) === "characters") return [...typed.labels];
    const parts = typed.labels.split(/[\s,]+/).filter(Boolean);
    const wrong = parts.find((part) => !/^\d+$/.test(part) || BigInt(part) < 1n);
    if (wrong !== undefined) refuse(`labels must be integers of at least 1 (0 is the blank), got ${read(wrong).text}`);
    return parts.map(BigInt);
  };

  const ctc = (typed) => {
    const frames = size("frames", typed.frames, 0n);
    const factor = size("subsampling", typed.subsampling, 1n);
    const counts = typed.given === "counts";
    const labels = counts ? [] : labelsOf(typed);
    const count = counts ? size("count", typed.count, 0n) : BigInt(labels.length);
    const repeats = counts
      ? size("repeats", typed.repeats, 0n)
      : BigInt(labels.filter((label, place) => place && label === labels[place - 1]).length);
    const most = count ? count - 1n : 0n;
    if (repeats > most) refuse(`repeats must be at most ${most}, one less than the labels, got ${repeats}`);
    const kept = up(frames, factor);
    const needed = count + repeats;
    const fits = kept >= needed;
    const coarsest = needed > 1n ? (frames - 1n) / (needed - 1n) : null;
    const blanks = `${counted(count, "label")} and ${counted(repeats, "blank")} between equal neighbors`;
    return {
      summary:
        `${fits ? "Fits" : "Does not fit"}: ${counted(kept, "frame")}, and ${commas(needed)} needed, ` +
        `for ${blanks}.`,
      tables: [
        [
          ["frames after subsampling", commas(kept)],
          ["labels", commas(count)],
          ["repeats", commas(repeats)],
          ["frames needed", commas(needed)],
          ["fits", fits ? "yes" : "no"],
          ["loss", fits ? "finite" : "inf"],
          ["coarsest subsampling that fits", frames < needed ? "none" : coarsest === null ? "any" : commas(coarsest)],
        ],
      ],
      absent: counts ? ["labels"] : ["count", "repeats"],
    };
  };

  // --- checkpoints in time -----------------------------------------------------------------------------------------

  /** The fewest segments with a·T/k + b·k ≤ M, by integers alone; null if there are none; 1 is the plain run. */
  const fewestSegments = (steps, a, b, budget) => {
    if (a * steps <= budget) return 1n;
    const fits = (k) => a * steps + b * k * k <= budget * k;
    let k = leastSegments(steps, a, b); // the valley: left of it, what fits is one interval
    if (!fits(k)) return null;
    let low = 1n; // does not fit
    while (k - low > 1n) {
      const middle = (low + k) / 2n;
      if (fits(middle)) k = middle;
      else low = middle;
    }
    return k;
  };

  /** The number of segments, up to T, for which a·T/k + b·k is smallest: the first k to which k + 1 is no better. */
  const leastSegments = (steps, a, b) => {
    let [low, high] = [1n, steps];
    while (low < high) {
      const middle = (low + high) / 2n;
      if (a * steps <= b * middle * (middle + 1n)) high = middle;
      else low = middle + 1n;
    }
    return low;
  };

  const plan = (typed) => {
    const steps = size("steps", typed.steps, 1n);
    const batch = size("batch", typed.batch, 1n);
    const features = size("features", typed.features, 1n);
    const units = size("units", typed.units, 1n);
    const layers = size("layers", typed.layers, 1n);
    const bytes = BYTES[oneOf("precision", typed.precision, Object.keys(BYTES))];
    const budget = (amount("budget", typed.budget) * 2n ** 20n) / 1000n;
    const kept = amount("kept", typed.kept);
    const perStep = (batch) => up(kept * layers * batch * units * bytes, 1000n);
    const border = (batch) => 2n * layers * batch * units * bytes;
    const segments = (batch) => fewestSegments(steps, perStep(batch), border(batch), budget);
    const [a, b] = [perStep(batch), border(batch)];
    const memory = (k) => Number(a * steps) / Number(k) + Number(b * k);

    // Whatever fits with some batch fits with a smaller one.
    let [most, tooMany] = [0n, 1n];
    while (segments(tooMany) !== null) [most, tooMany] = [tooMany, 2n * tooMany];
    while (tooMany - most > 1n) {
      const middle = (most + tooMany) / 2n;
      if (segments(middle) === null) tooMany = middle;
      else most = middle;
    }

    const found = segments(batch);
    const plain = found === 1n;
    const valley = leastSegments(steps, a, b);
    const spec = { input_size: features, hidden_size: units, num_layers: layers, directions: 1n, width: units };
    const again = `${commas(flops(spec, steps, batch))} FLOPs, one forward call`;
    const none = "no plan: a smaller batch, or truncated BPTT";
    const run = found === null ? none : plain ? "plain" : counted(found, "segment");
    const activations = found === null ? "–" : binary(plain ? a * steps : memory(found));
    return {
      summary:
        found === null
          ? `No number of segments fits; the largest batch that does is ${commas(most)}.`
          : `${plain ? "A plain run fits" : `${counted(found, "segment")} fit`}: ${activations} of activations.`,
      tables: [
        [
          ["run", run],
          ["longest segment", found === null ? "–" : counted(up(steps, found), "step")],
          ["activations", activations],
          ["activations of a plain run", binary(a * steps)],
          [`least memory, at ${counted(valley, "segment")}`, binary(memory(valley))],
          ["input, in any case", binary(steps * batch * features * bytes)],
          ["computed again", found === null ? "–" : plain ? "nothing" : again],
          ["largest batch with any plan", commas(most)],
        ],
      ],
    };
  };

  // --- forms -------------------------------------------------------------------------------------------------------

  const valueOf = (control) =>
    control.type !== "checkbox" ? control.value : control.checked ? "True" : "False";

  const defaultOf = (control) => {
    if (control.type === "checkbox") return control.defaultChecked ? "True" : "False";
    return control.tagName === "SELECT" ? control.options[0].value : control.defaultValue;
  };

  const fill = (table, rows) => {
    const body = table.tBodies[0];
    const aligned = [...table.tHead.rows[0].cells].map((cell) => cell.className);
    body.replaceChildren(
      ...rows.map((texts) => {
        const row = document.createElement("tr");
        texts.forEach((text, place) => {
          const cell = row.insertCell();
          cell.className = aligned[place];
          cell.textContent = text;
        });
        return row;
      }),
    );
  };

  const calculators = [];

  // Browsers refuse an address that changes with every key.
  let waiting;
  const remember = () => {
    const address = new URL(location.href);
    address.search = new URLSearchParams(calculators.flatMap(({ shared }) => Object.entries(shared)));
    history.replaceState(history.state, "", address);
  };

  const start = (box, compute, asked) => {
    const form = box.querySelector("form");
    const result = box.querySelector(".calculator-result");
    const status = form.querySelector("[role=status]");
    const tables = [...result.querySelectorAll("table")];
    const code = result.querySelector("pre");
    const named = [...form.elements].filter((control) => control.name);
    const controls = Object.fromEntries(named.map((control) => [control.name, control]));
    const slider = (name) => form.querySelector(`[data-for="${name}"]`);
    const calculator = { shared: {}, names: Object.keys(controls) };
    calculators.push(calculator);
    status.id = `${box.id}-status`;

    let drawing = null;
    let width = 0; // as observed: asking for it would lay out the page at every key
    const canvas = document.createElement("div");
    const redraw = () => {
      if (!drawing || !width) return;
      const svg = drawing.draw(Math.max(width, 260));
      svg.setAttribute("aria-label", drawing.label);
      canvas.replaceChildren(svg);
    };

    const typed = () => Object.fromEntries(named.map((control) => [control.name, valueOf(control)]));

    const blame = (name) =>
      named.forEach((control) => {
        const marks = { "aria-invalid": "true", "aria-describedby": status.id };
        Object.entries(marks).forEach(([mark, value]) =>
          control.name === name ? control.setAttribute(mark, value) : control.removeAttribute(mark),
        );
      });

    const show = (found) => {
      const { disabled = [], absent = [], highest = {} } = found;
      status.textContent = found.summary;
      found.tables.forEach((rows, place) => fill(tables[place], rows));
      if (code && code.textContent.trim() !== found.code) code.textContent = found.code;
      named.forEach((control) => {
        const off = disabled.includes(control.name);
        control.disabled = off;
        if (slider(control.name)) slider(control.name).disabled = off;
        control.closest(".calculator-field")?.toggleAttribute("hidden", absent.includes(control.name));
      });
      Object.entries(highest).forEach(([name, most]) => (slider(name).max = String(most)));
      drawing = found.drawing;
      redraw();
    };

    const update = () => {
      named.forEach(({ name, value }) => slider(name) && (slider(name).value = value));
      let refused = null;
      try {
        show(compute(typed()));
        calculator.shared = Object.fromEntries(
          named.filter((control) => valueOf(control) !== defaultOf(control)).map((c) => [c.name, valueOf(c)]),
        );
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        refused = error.message;
        status.textContent = `${refused}. What stands below is the last one that was valid.`;
      }
      blame(refused?.split(" ")[0]);
      form.classList.toggle("calculator-refused", refused !== null);
      result.classList.toggle("calculator-stale", refused !== null);
    };

    form.addEventListener("input", ({ target }) => {
      if (target.dataset.for) controls[target.dataset.for].value = target.value;
      update();
      clearTimeout(waiting);
      waiting = setTimeout(remember, 300);
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () =>
      setTimeout(() => {
        update();
        remember();
      }),
    );

    const wanted = [...asked].filter(([name]) => name in controls);
    let unusable = "";
    if (wanted.length) {
      const defaults = Object.fromEntries(named.map((control) => [control.name, defaultOf(control)]));
      try {
        compute({ ...defaults, ...Object.fromEntries(wanted) });
        wanted.forEach(([name, value]) => {
          if (controls[name].type === "checkbox") controls[name].checked = value.trim() === "True";
          else controls[name].value = value;
        });
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        unusable = error.message;
      }
    }
    form.hidden = false;
    if (compute === lstm) {
      const figure = document.createElement("figure");
      figure.className = "calculator-drawing";
      figure.innerHTML = `<figcaption>${CAPTION}</figcaption>`;
      figure.prepend(canvas);
      result.prepend(figure);
      new ResizeObserver(([{ contentRect }]) => {
        width = Math.floor(contentRect.width);
        redraw();
      }).observe(canvas);
    }
    update();
    return unusable;
  };

  /** Say on top of a calculator that the address could not be used. */
  const complain = (box, text) => {
    const note = document.createElement("p");
    note.className = "calculator-notice";
    note.setAttribute("role", "alert");
    note.textContent = text;
    box.prepend(note);
    box.addEventListener("input", () => note.remove(), { once: true });
  };

  const asked = new URLSearchParams(location.search);
  Object.entries({ lstm, ctc, plan }).forEach(([name, compute]) => {
    const box = document.getElementById(`calculator-${name}`);
    const unusable = start(box, compute, asked);
    if (unusable) complain(box, `The address of this page was not used, since ${unusable}. These are the defaults.`);
  });
  const known = calculators.flatMap(({ names }) => names).concat(FOREIGN);
  const unknown = [...asked.keys()].filter((name) => !known.includes(name));
  if (unknown.length)
    complain(
      document.querySelector(".calculator"),
      `The address of this page names ${unknown.join(", ")}, which is nothing here.`,
    );
})();
