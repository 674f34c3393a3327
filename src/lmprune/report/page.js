// Hover shows the run, a click on a method hides or shows it everywhere; all else is in the page already.
"use strict";
const tip = document.getElementById("tip");
document.addEventListener("pointermove", (event) => {
  const target = event.target.closest && event.target.closest("[data-tip]");
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.dataset.tip;
  const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
  const below = event.clientY + 16 + tip.offsetHeight < window.innerHeight;
  tip.style.left = left + "px";
  tip.style.top = (below ? event.clientY + 16 : event.clientY - tip.offsetHeight - 12) + "px";
});
const slug = (group) => [...group].map((c) => (/[\p{L}\p{N}]/u.test(c) ? c : "-")).join("");
function toggle(group) {
  const chip = [...document.querySelectorAll(".chip")].find((c) => c.dataset.group === group);
  const hide = chip.getAttribute("aria-pressed") === "true";
  chip.setAttribute("aria-pressed", String(!hide));
  const name = CSS.escape(slug(group));
  document.querySelectorAll(`.g-${name}, .k-${name}`).forEach((part) => part.classList.toggle("off", hide));
}
document.addEventListener("click", (event) => {
  const target = event.target.closest("[data-group]");
  if (target) toggle(target.dataset.group);
});
