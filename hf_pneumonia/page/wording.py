"""How the page says a decision and a probability: in words, by a shape, in whole percent."""

import math

from hf_pneumonia.inference.prediction import NORMAL, NOT_A_FILM, PNEUMONIA, UNCERTAIN

# Of one film of many, beside the classifier's DECISIONS.
UNREADABLE = "could not be read"

# A decision as the first line of an answer.
WORDS = {
    PNEUMONIA: "Pneumonia",
    UNCERTAIN: "Uncertain - have it read",
    NORMAL: "Normal",
    NOT_A_FILM: "Not a chest film",
    UNREADABLE: "Could not be read",
}

# A full, a half, an empty and two struck circles: told apart without their colours.
_LINE = 'stroke="currentColor" stroke-width="2.5"'
_CIRCLE = f'<circle cx="10" cy="10" r="8" fill="none" {_LINE}/>'
_SHAPES = {
    PNEUMONIA: '<circle cx="10" cy="10" r="9.25" fill="currentColor"/>',
    UNCERTAIN: _CIRCLE + '<path d="M10 2a8 8 0 0 1 0 16z" fill="currentColor"/>',
    NORMAL: _CIRCLE,
    NOT_A_FILM: f'{_CIRCLE}<path d="M4.5 4.5l11 11" {_LINE}/>',
    UNREADABLE: f'{_CIRCLE}<path d="M4.5 4.5l11 11m0-11l-11 11" {_LINE}/>',
}

# Of a percent: what 0.29 lacks as a float32 (or as 100 * 0.29) must not floor it to 28%.
_ROUNDING = 1e-5


def shape(decision: str) -> str:
    """A decision's sign: an svg element in the colour of the text around it, not read out."""
    return f'<svg viewBox="0 0 20 20" aria-hidden="true">{_SHAPES[decision]}</svg>'


def percent(probability: float) -> str:
    """A probability in whole percent, floored; beyond 1% and 99% only that, as nothing is 0% or 100% sure."""
    hundredths = 100 * probability
    if hundredths < 1 - _ROUNDING:
        return "< 1%"
    if hundredths > 99 + _ROUNDING:
        return "> 99%"
    return f"{math.floor(hundredths + _ROUNDING)}%"
