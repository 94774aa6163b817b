// The search of the error index: filters and reorders the rows that book/_ext/pitfall_index.py has rendered.
// Messages are matched as lstm_utils.pitfalls does it in Python; tests/test_browser.py holds one against the other.
(() => {
  "use strict";

  const ENOUGH_WORDS = 0.8; // as in lstm_utils/pitfalls.py
  const PARAMETER = "find"; // not "q": on every page, Sphinx's own search takes that for itself
  const LONGEST_LINK = 1000; // characters of a query that still fit an address one would pass on

  /** A message without what differs from case to case: numbers, their count, case and line breaks. */
  const normalize = (text) =>
    text
      .toLowerCase()
      .replace(/(?<![a-z]\[)\p{Nd}+(\.\p{Nd}+)?/gu, "#") // the index of hidden[0] stays
      .replace(/#(, ?#)*/g, "#")
      .replace(/\s+/g, " ")
      .trim();

  const wordsOf = (normal) => new Set(normal.match(/[a-z_]{2,}/g));

  /** Prose without capitals, typographer's quotes and line breaks. */
  const plain = (text) => text.toLowerCase().replace(/[‘’]/g, "'").replace(/\s+/g, " ");

  /** What a row says, ready to be compared. */
  const describe = (row) => {
    const [id, ...cells] = row.cells;
    return {
      row,
      title: plain(`${id.textContent} ${row.querySelector(".pitfall-title").textContent}`),
      text: plain(row.textContent),
      normal: cells.map((cell) => normalize(cell.textContent)).join(" "), // the id is more than "p#"
      messages: [...row.querySelectorAll(".pitfall-message code")].map((code) => {
        const normal = normalize(code.textContent);
        return { code, known: code.textContent, normal, words: wordsOf(normal) };
      }),
    };
  };

  /** How well a query contains each message: 0 as it is, 1 with other numbers, 2 nearly all of its words, else nothing. */
  const matchMessages = (query, rows) => {
    const normal = normalize(query);
    const words = wordsOf(normal);
    const rank = (message) => {
      if (query.includes(message.known)) return 0;
      if (normal.includes(message.normal)) return 1;
      const shared = [...message.words].filter((word) => words.has(word)).length;
      return shared >= ENOUGH_WORDS * message.words.size ? 2 : Infinity;
    };
    return rows.map(({ row, messages }) => {
      const ranks = messages.map(rank);
      const hits = messages.filter((_, index) => ranks[index] < Infinity).map(({ code }) => code);
      return { row, rank: Math.min(...ranks), hits };
    });
  };

  /** Rows that contain every word of a query: 3 in the title, 4 anywhere, 5 but for numbers, else nothing. */
  const matchWords = (query, rows) => {
    const words = plain(query)
      .replace(/\b[\w.]+(error|warning):/g, " ") // the beginning of a message: its type is not recorded
      .split(/[\s,;]+/)
      .filter(Boolean);
    if (!words.length) return [];
    const within = (text) => words.every((word) => text.includes(word));
    const alike = (normal) => words.every((word) => normal.includes(normalize(word)));
    const rank = ({ title, text }) => (within(title) ? 3 : within(text) ? 4 : Infinity);
    const literally = rows.some(({ text }) => within(text));
    return rows.map((entry) => {
      return { row: entry.row, rank: literally ? rank(entry) : alike(entry.normal) ? 5 : Infinity, hits: [] };
    });
  };

  /** The matching rows, the best first; equals keep the order of the page, the most common pitfall first. */
  const find = (query, rows) => {
    const found = (matches) => matches.filter(({ rank }) => rank < Infinity).sort((a, b) => a.rank - b.rank);
    const said = found(matchMessages(query, rows));
    return said.length ? said : found(matchWords(query, rows));
  };

  const start = (index) => {
    const search = index.querySelector("[role=search]");
    const box = search.querySelector("textarea");
    const status = search.querySelector("[role=status]");
    const table = index.querySelector("table");
    const rows = [...table.tBodies[0].rows].map(describe);

    const unmark = () => {
      index.querySelectorAll(".pitfall-best").forEach((mark) => mark.remove());
      index.querySelectorAll(".pitfall-hit").forEach((code) => code.classList.remove("pitfall-hit"));
    };

    const mark = (matches) => {
      const best = matches.filter(({ rank }) => rank === matches[0].rank);
      if (matches[0].rank > 2 && best.length > 1) return; // a few words that many rows contain rank nothing
      best.forEach(({ row }, place) => {
        const note = document.createElement("p");
        note.className = "pitfall-best";
        note.textContent = best.length > 1 ? `Best match, ${place + 1} of ${best.length}` : "Best match";
        row.querySelector(".pitfall-title").before(note);
      });
      matches.forEach(({ hits }) => hits.forEach((code) => code.classList.add("pitfall-hit")));
    };

    const show = () => {
      const query = box.value.trim();
      const matches = query ? find(query, rows) : [];
      const shown = query ? matches.map(({ row }) => row) : rows.map(({ row }) => row);
      unmark();
      rows.forEach(({ row }) => (row.hidden = !shown.includes(row)));
      table.tBodies[0].prepend(...shown);
      if (matches.length) mark(matches);
      table.hidden = !shown.length;
      search.classList.toggle("pitfall-searching", Boolean(query));
      const count = query ? `${shown.length} of ${rows.length} pitfalls` : `${rows.length} pitfalls`;
      status.textContent = shown.length
        ? count
        : "Nothing matches. Try the last line of the error alone, or one or two words of it.";
    };

    // Browsers refuse an address that changes with every key; the end of a traceback is its message.
    let waiting;
    const remember = () => {
      const address = new URL(location.href);
      const query = box.value.trim().slice(-LONGEST_LINK);
      if (query) address.searchParams.set(PARAMETER, query);
      else address.searchParams.delete(PARAMETER);
      history.replaceState(history.state, "", address);
    };

    const update = () => {
      show();
      clearTimeout(waiting);
      waiting = setTimeout(remember, 300);
    };

    const clear = () => {
      box.value = "";
      update();
      box.focus();
    };

    box.addEventListener("input", update);
    search.querySelector("button").addEventListener("click", clear);
    index.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.isComposing && box.value) clear();
    });

    box.value = new URLSearchParams(location.search).get(PARAMETER) ?? "";
    search.hidden = false;
    show();
  };

  document.querySelectorAll(".pitfall-index").forEach(start);
})();
