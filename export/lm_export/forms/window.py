"""The form of the fixed-window family: traced as it is, into plain operators."""

from __future__ import annotations

from lm_export.forms.form import Form, Layers
from lm_runtime.bundle import BundleConfig


class WindowForm(Form):
    """A feed-forward network over the last few tokens."""

    def layers(self, config: BundleConfig) -> Layers:
        """As :meth:`Form.layers`."""
        return {"int8": ["embedding", "hidden layer", "output layer"], "fp32": []}

    def sizes(self, config: BundleConfig) -> str:
        """As :meth:`Form.sizes`."""
        hidden = f"hidden layer of {config.hidden_size}"
        return f"{config.window} tokens, embedding {config.embedding_dim}, {hidden}"
