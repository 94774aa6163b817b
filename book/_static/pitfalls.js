// The search of the error index: filters and reorders the rows that book/_ext/pitfall_index.py has rendered. On its own
// page they stand in the text; on every other, the key or the button "Find your error" opens them in a dialog.
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

  /** The address of the index with a query; the end of a traceback is its message. */
  const addressOf = (page, query) => {
    const address = new URL(page);
    if (query) address.searchParams.set(PARAMETER, query.slice(-LONGEST_LINK));
    else address.searchParams.delete(PARAMETER);
    return address;
  };

  /** Make an index work, from a first query on; `remember` is told every later one. Returns its box, and what clears it. */
  const start = (index, query, remember) => {
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

    const update = () => {
      show();
      remember(box.value.trim());
    };

    const clear = () => {
      box.value = "";
      update();
      box.focus();
    };

    box.addEventListener("input", update);
    search.querySelector("button").addEventListener("click", clear);
    box.value = query;
    search.hidden = false;
    show();
    return { box, clear };
  };

  const startPage = (index) => {
    let waiting; // browsers refuse an address that changes with every key
    const remember = (query) => {
      clearTimeout(waiting);
      waiting = setTimeout(() => history.replaceState(history.state, "", addressOf(location.href, query)), 300);
    };
    const { box, clear } = start(index, new URLSearchParams(location.search).get(PARAMETER) ?? "", remember);
    index.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.isComposing && box.value) clear();
    });
    return () => box.focus();
  };

  const startDialog = (page) => {
    const dialog = document.createElement("dialog");
    dialog.className = "find-error-dialog";
    dialog.setAttribute("aria-labelledby", "find-error-title");
    dialog.setAttribute("closedby", "any"); // a click beside it, too
    dialog.innerHTML = `
      <header><h2 id="find-error-title">Find your error</h2><button type="button">Close</button></header>
      ${window.pitfallIndex}
      <footer><label><input type="checkbox"> The key <kbd>${KEY}</kbd> opens this</label><a>As a page</a></footer>`;
    dialog.querySelector(".pitfall-search button").removeAttribute("aria-keyshortcuts"); // here, Escape closes
    document.body.append(dialog);
    for (const link of dialog.querySelectorAll("a[href]")) link.href = new URL(link.getAttribute("href"), page);
    const whole = dialog.querySelector("footer a");
    const remember = (query) => (whole.href = addressOf(page, query));
    const { box } = start(dialog, "", remember);
    remember("");
    const close = () => dialog.close(); // the browser then gives the focus back
    dialog.querySelector("button").addEventListener("click", close);
    dialog.addEventListener("click", (event) => event.target.closest("a") && close()); // the cell may be on this page
    const byKey = dialog.querySelector("input");
    byKey.checked = keyIsOn();
    byKey.addEventListener("change", () => {
      localStorage.setItem(SETTING, byKey.checked ? "on" : "off");
      showKey();
    });
    return () => {
      dialog.showModal();
      box.focus();
      box.select();
    };
  };

  // A key alone can be struck by chance, or by a program that turns speech into keys: it can be switched off.
  const KEY = "e";
  const SETTING = "find-error-key";
  const keyIsOn = () => localStorage.getItem(SETTING) !== "off";
  const link = document.querySelector(".find-error");
  const showKey = () => {
    link.querySelector("kbd").hidden = !keyIsOn();
    if (keyIsOn()) link.setAttribute("aria-keyshortcuts", KEY);
    else link.removeAttribute("aria-keyshortcuts");
  };

  const index = document.querySelector(".pitfall-index");
  let open = index && startPage(index);
  const openIndex = () => {
    open ??= startDialog(link.href);
    open();
  };

  const modified = (event) => event.ctrlKey || event.metaKey || event.altKey || event.shiftKey;
  const TYPED_INTO = "input, textarea, select, dialog";
  document.addEventListener("keydown", (event) => {
    if (event.key !== KEY || modified(event) || event.repeat || event.isComposing || !keyIsOn()) return;
    if (event.target.isContentEditable || event.target.closest(TYPED_INTO)) return;
    event.preventDefault(); // or the box would begin with it
    openIndex();
  });
  link.addEventListener("click", (event) => {
    if (modified(event)) return;
    event.preventDefault();
    openIndex();
  });
  showKey();
})();
