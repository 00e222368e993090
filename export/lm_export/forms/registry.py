"""The form of each family, by the ``model_type`` of its configuration."""

from __future__ import annotations

from lm_export.forms.form import Form
from lm_export.forms.ngram import NgramForm
from lm_export.forms.window import WindowForm

_FORMS: dict[str, Form] = {"window": WindowForm(), "ngram": NgramForm()}
_RECURRENT = ("lstm", "gru", "rnn")
"""Whose forms need torch."""


def register_form(family: str, form: Form) -> None:
    """Let the models of ``family`` be written in ``form``."""
    _FORMS[family] = form


def form_of(family: str) -> Form:
    """The form of ``family``; one that was not registered is traced as it is."""
    if family in _RECURRENT and family not in _FORMS:
        from lm_export.forms.recurrent import RecurrentForm

        register_form(family, RecurrentForm(family))
    return _FORMS.get(family) or Form()
