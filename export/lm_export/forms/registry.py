"""The form of each family, by the ``model_type`` of its configuration."""

from __future__ import annotations

from lm_export.forms.form import Form
from lm_export.forms.ngram import NgramForm
from lm_export.forms.recurrent import RecurrentForm
from lm_export.forms.window import WindowForm

_FORMS: dict[str, Form] = {
    "lstm": RecurrentForm("lstm"),
    "gru": RecurrentForm("gru"),
    "rnn": RecurrentForm("rnn"),
    "window": WindowForm(),
    "ngram": NgramForm(),
}


def register_form(family: str, form: Form) -> None:
    """Let the models of ``family`` be written in ``form``."""
    _FORMS[family] = form


def form_of(family: str) -> Form:
    """The form of ``family``; one that was not registered is traced as it is."""
    return _FORMS.get(family) or Form()
