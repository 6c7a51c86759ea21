"""Parts of one's own for FlexGen: one module a part."""
