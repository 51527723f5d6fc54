// Fills the landing page's table from the cards, and the example with this page's own address.
"use strict";

const base = new URL(".", document.location.href);
document.getElementById("origin").textContent = base.href;

function row(cells) {
  const line = document.createElement("tr");
  for (const cell of cells) {
    const data = document.createElement("td");
    data.append(cell);
    line.append(data);
  }
  return line;
}

function describe(card) {
  const link = document.createElement("a");
  link.href = new URL(`v1/models/${encodeURIComponent(card.id)}`, base).href;
  link.textContent = card.id;
  const { width, height, channels } = card.input;
  return row([link, card.summary, `${width} × ${height}, ${channels === 1 ? "grey" : "colour"}`,
    `up to ${card.limits.max_way}`]);
}

async function fill() {
  const body = document.getElementById("models");
  try {
    const answer = await fetch(new URL("v1/models", base));
    const { models } = await answer.json();
    body.replaceChildren(...models.map(describe));
    if (models.length === 0) body.replaceChildren(row(["The zoo has no entries yet."]));
    else document.getElementById("example").textContent = models[0].id;
  } catch {
    body.replaceChildren(row(["The models could not be read."]));
  }
}

fill();
