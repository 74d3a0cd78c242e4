//! What `#[shrink(...)]` says, on a field and on the type.

use syn::meta::ParseNestedMeta;
use syn::punctuated::Punctuated;
use syn::{Attribute, Expr, Path, Result, Token, WherePredicate, parenthesized};

/// A field's attributes.
#[derive(Default)]
pub(crate) struct Field {
    pub(crate) skip: bool,
    pub(crate) keep: Option<Expr>,
    pub(crate) factor: Option<Expr>,
    pub(crate) with: Option<Path>,
    pub(crate) slack: Option<Path>,
}

/// The type's attributes.
pub(crate) struct Container {
    pub(crate) krate: Path,
    pub(crate) bound: Option<Punctuated<WherePredicate, Token![,]>>,
}

impl Field {
    pub(crate) fn parse(attrs: &[Attribute]) -> Result<Field> {
        let mut field = Field::default();
        let mut at = None;
        for attr in attrs.iter().filter(|attr| attr.path().is_ident("shrink")) {
            at = Some(attr);
            attr.parse_nested_meta(|meta| {
                if meta.path.is_ident("skip") {
                    if std::mem::replace(&mut field.skip, true) {
                        return Err(meta.error("said twice"));
                    }
                    Ok(())
                } else if meta.path.is_ident("keep") {
                    once(&mut field.keep, &meta)
                } else if meta.path.is_ident("factor") {
                    once(&mut field.factor, &meta)
                } else if meta.path.is_ident("with") {
                    once(&mut field.with, &meta)
                } else if meta.path.is_ident("slack") {
                    once(&mut field.slack, &meta)
                } else {
                    Err(meta.error(
                        "expected `skip`, `keep = elements`, `factor = times`, `with = path` or `slack = path`",
                    ))
                }
            })?;
        }
        let Some(at) = at else { return Ok(field) };
        let tuned = field.keep.is_some() || field.factor.is_some();
        if field.skip && (tuned || field.with.is_some() || field.slack.is_some()) {
            return Err(syn::Error::new_spanned(
                at,
                "`skip` leaves the field alone: nothing else can be said of it",
            ));
        }
        if field.slack.is_some() && field.with.is_none() {
            return Err(syn::Error::new_spanned(
                at,
                "`slack` measures what `with` shrinks: it needs `with = path`",
            ));
        }
        Ok(field)
    }
}

impl Container {
    pub(crate) fn parse(attrs: &[Attribute]) -> Result<Container> {
        let mut krate: Option<Path> = None;
        let mut bound = None;
        for attr in attrs.iter().filter(|attr| attr.path().is_ident("shrink")) {
            attr.parse_nested_meta(|meta| {
                if meta.path.is_ident("crate") {
                    once(&mut krate, &meta)
                } else if meta.path.is_ident("bound") {
                    let inside;
                    parenthesized!(inside in meta.input);
                    bound = Some(Punctuated::parse_terminated(&inside)?);
                    Ok(())
                } else {
                    Err(meta.error(
                        "expected `bound(T: Trait, ...)` or `crate = path`; the others belong to a field",
                    ))
                }
            })?;
        }
        Ok(Container { krate: krate.unwrap_or_else(|| syn::parse_quote!(::ebbtide_shrink)), bound })
    }
}

/// `name = value`, once.
fn once<T: syn::parse::Parse>(slot: &mut Option<T>, meta: &ParseNestedMeta<'_>) -> Result<()> {
    if slot.replace(meta.value()?.parse()?).is_some() {
        return Err(meta.error("said twice"));
    }
    Ok(())
}
