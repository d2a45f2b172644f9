"use strict";
// Numbers and comparisons as text, as in the page's tables (backtrack/report/wording.py).
const wording = (() => {
  const MINUS = "\u2212";
  const NO_NUMBER = "\u2013";

  function decimalsOf(values, unit) {
    if (unit === "%" || unit === "points") return 1;
    const largest = Math.max(0, ...values.map(Math.abs).filter(Number.isFinite));
    if (largest === 0) return 1;
    return Math.min(8, Math.max(0, 3 - Math.floor(Math.log10(largest))));
  }

  function fixed(value, decimals, isSigned) {
    if (!Number.isFinite(value)) return NO_NUMBER;
    const text = Math.abs(value).toLocaleString("en-US", {
      minimumFractionDigits: decimals,
      maximumFractionDigits: decimals,
    });
    if (isSigned) return (value < 0 ? MINUS : "+") + text;
    return (value < 0 && /[1-9]/.test(text) ? MINUS : "") + text;
  }

  const number = (value, unit) => fixed(value ?? NaN, decimalsOf([value ?? NaN], unit), false);

  function withUnit(value, unit) {
    if (unit === "fraction") [value, unit] = [100 * (value ?? NaN), "%"];
    return unit === "%" ? `${number(value, unit)}%` : `${number(value, unit)} ${unit}`;
  }

  function interval(estimate, [low, high], unit, isSigned = false) {
    const decimals = decimalsOf([estimate, low, high], unit);
    const ends = [low, high].map((end) => fixed(end, decimals, isSigned));
    return `${fixed(estimate, decimals, isSigned)} [${ends.join(", ")}]`;
  }

  // Without an axis: more is better.
  const comparison = ([low, high]) => (low > 0 ? "better" : high < 0 ? "worse" : "unclear");

  return { NO_NUMBER, number, withUnit, interval, comparison };
})();
