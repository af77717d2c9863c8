// What all dialogs share, questions before something is spent or lost, and menus.

import { $, button } from "./words.js";

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.querySelector(".close")?.addEventListener("click", () => dialog.close());
}

/** Ask a question, and return whether it was confirmed. Without a label it is a message. */
export function confirmed(text, yes = "OK") {
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = yes;
  $("confirm-no").hidden = yes === "OK";
  $("confirm").returnValue = "no";
  $("confirm").showModal();
  (yes === "OK" ? $("confirm-yes") : $("confirm-no")).focus();
  return new Promise((resolve) => {
    $("confirm").addEventListener("close", () => resolve($("confirm").returnValue === "yes"), { once: true });
  });
}

const menu = $("menu");
let opener = null;

/** Show a menu of `[text, action]` beside the button that opens it. */
export function openMenu(from, items) {
  opener = from;
  menu.replaceChildren(...items.map(([text, action]) => {
    const item = button(text, () => {
      menu.hidePopover();
      action();
    });
    item.setAttribute("role", "menuitem");
    return item;
  }));
  menu.showPopover();
  const box = from.getBoundingClientRect();
  const below = box.bottom + menu.offsetHeight + 8 < innerHeight;
  const top = below ? box.bottom + 4 : Math.max(8, box.top - menu.offsetHeight - 4);
  const left = Math.max(8, Math.min(box.right - menu.offsetWidth, innerWidth - menu.offsetWidth - 8));
  menu.style.top = `${top + scrollY}px`;
  menu.style.left = `${left + scrollX}px`;
  menu.firstElementChild?.focus({ preventScroll: true });
}

menu.addEventListener("toggle", ({ newState }) => {
  opener?.setAttribute("aria-expanded", String(newState === "open"));
  if (newState === "closed" && (menu.contains(document.activeElement) || document.activeElement === document.body)) opener?.focus();
});

menu.addEventListener("keydown", (event) => {
  const items = [...menu.children];
  const index = items.indexOf(document.activeElement);
  const next = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: items.length - 1 }[event.key];
  if (event.key === "Tab") menu.hidePopover();
  if (next === undefined) return;
  event.preventDefault();
  items.at(next % items.length).focus();
});

// The button may have moved.
addEventListener("resize", () => menu.matches(":popover-open") && menu.hidePopover());

const PAUSE = 500; // milliseconds between two clicks that are not a double click

/**
 * Return a function that runs an action once for a double click: a call is ignored while another
 * one runs, and for a moment after one with the same arguments.
 */
export function once(action) {
  let running = false;
  let latest = null;
  return async (...args) => {
    const text = JSON.stringify(args);
    if (running || latest === text) return;
    running = true;
    latest = text;
    try {
      await action(...args);
    } finally {
      running = false;
      setTimeout(() => (latest = latest === text ? null : latest), PAUSE);
    }
  };
}
