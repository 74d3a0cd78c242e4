//! From a type's definition to its implementation.

use crate::attrs::{Container, Field};
use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Data, DeriveInput, Fields, Index, Path, Result};

/// Which of the two traits.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Of {
    Owned,
    Shared,
}

impl Of {
    fn names(self) -> (Ident, Ident, Ident, Ident) {
        let (of, slack, shrink, flat) = match self {
            Of::Owned => ("Shrink", "slack", "shrink", "is_flat"),
            Of::Shared => ("ShrinkShared", "slack_shared", "shrink_shared", "is_flat_shared"),
        };
        (format_ident!("{of}"), format_ident!("{slack}"), format_ident!("{shrink}"), format_ident!("{flat}"))
    }
}

/// The implementation, or a compile error in its place.
pub(crate) fn derive(input: TokenStream, of: Of) -> TokenStream {
    syn::parse2(input).and_then(|input| expand(&input, of)).unwrap_or_else(|error| error.into_compile_error())
}

/// What one set of fields (a struct's, or a variant's) contributes.
#[derive(Default)]
struct Arms {
    slack: Vec<TokenStream>,
    shrink: Vec<TokenStream>,
    flat: Vec<TokenStream>,
    used: Vec<syn::Type>,
}

fn expand(input: &DeriveInput, of: Of) -> Result<TokenStream> {
    let container = Container::parse(&input.attrs)?;
    let krate = &container.krate;
    let mut arms = Arms::default();
    match &input.data {
        Data::Struct(data) => arms.add(&quote!(Self), "", &data.fields, krate, of)?,
        Data::Enum(data) => {
            for variant in &data.variants {
                let name = &variant.ident;
                arms.add(&quote!(Self::#name), &format!("{name}."), &variant.fields, krate, of)?;
            }
        }
        Data::Union(data) => {
            let said = "a union does not say which field it holds: implement the trait by hand";
            return Err(syn::Error::new(data.union_token.span(), said));
        }
    }
    let name = &input.ident;
    let generics = bounded(input, &container, &arms.used, of);
    let (with, of_type, bounds) = generics.split_for_impl();
    let (this_trait, slack, shrink, flat) = of.names();
    let by = if of == Of::Owned { quote!(&mut self) } else { quote!(&self) };
    let Arms { slack: slacks, shrink: shrinks, flat: flats, .. } = &arms;
    // An enum without variants has no value to match by reference.
    let (slacks, shrinks) = if slacks.is_empty() {
        (quote!(match *self {}), quote!(match *self {}))
    } else {
        (quote!(match self { #(#slacks)* }), quote!(match self { #(#shrinks)* }))
    };
    Ok(quote! {
        #[automatically_derived]
        impl #with #krate::#this_trait for #name #of_type #bounds {
            fn #slack(&self) -> #krate::Bytes {
                #slacks
            }
            #[allow(unused_variables)]
            fn #shrink(#by, cascade: &mut #krate::Cascade<'_>) {
                #shrinks
            }
            fn #flat() -> bool {
                true #(&& #flats)*
            }
        }
    })
}

impl Arms {
    fn add(&mut self, path: &TokenStream, prefix: &str, fields: &Fields, krate: &Path, of: Of) -> Result<()> {
        let (this_trait, slack_fn, shrink_fn, flat_fn) = of.names();
        let (mut patterns, mut slacks, mut shrinks) = (Vec::new(), Vec::new(), Vec::new());
        for (number, field) in fields.iter().enumerate() {
            let said = Field::parse(&field.attrs)?;
            if said.skip {
                continue;
            }
            let member = match &field.ident {
                Some(ident) => quote!(#ident),
                None => {
                    let index = Index::from(number);
                    quote!(#index)
                }
            };
            let bound = format_ident!("field{number}");
            patterns.push(quote!(#member: #bound));
            let shown = format!("{prefix}{}", member.to_string().trim_start_matches("r#"));
            let (ty, span) = (&field.ty, field.ty.span());
            let keep = said.keep.iter();
            let factor = said.factor.iter();
            let tuning = quote!(#krate::Tuning::NONE #(.keep(#keep))* #(.factor((#factor) as f64))*);
            let shrink = match &said.with {
                Some(with) => quote_spanned!(with.span()=> #with(#bound, cascade)),
                None => quote_spanned!(span=> <#ty as #krate::#this_trait>::#shrink_fn(#bound, cascade)),
            };
            shrinks.push(quote!(cascade.field_with(#shown, #tuning, |cascade| #shrink);));
            match (&said.with, &said.slack) {
                (Some(_), Some(slack)) => slacks.push(quote_spanned!(slack.span()=> + #slack(#bound))),
                // What a function shrinks, only a function can measure.
                (Some(_), None) => slacks.push(quote!(+ { let _ = #bound; #krate::Bytes::ZERO })),
                (None, _) => {
                    slacks.push(quote_spanned!(span=> + <#ty as #krate::#this_trait>::#slack_fn(#bound)));
                }
            }
            self.flat.push(match &said.with {
                Some(_) => quote!(false),
                None => quote_spanned!(span=> <#ty as #krate::#this_trait>::#flat_fn()),
            });
            if said.with.is_none() {
                self.used.push(ty.clone());
            }
        }
        self.slack.push(quote!(#path { #(#patterns,)* .. } => #krate::Bytes::ZERO #(#slacks)*,));
        self.shrink.push(quote!(#path { #(#patterns,)* .. } => { #(#shrinks)* }));
        Ok(())
    }
}

/// The type's generics, with the bounds that were said, or with the trait for each type parameter that a field uses.
fn bounded(input: &DeriveInput, container: &Container, used: &[syn::Type], of: Of) -> syn::Generics {
    let mut generics = input.generics.clone();
    let krate = &container.krate;
    let this_trait = of.names().0;
    if let Some(bound) = &container.bound {
        generics.make_where_clause().predicates.extend(bound.iter().cloned());
        return generics;
    }
    let mut found =
        Mentioned { params: generics.type_params().map(|p| p.ident.clone()).collect(), used: Vec::new() };
    used.iter().for_each(|ty| found.visit_type(ty));
    for param in generics.type_params_mut() {
        if found.used.contains(&param.ident) {
            param.bounds.push(syn::parse_quote!(#krate::#this_trait));
        }
    }
    generics
}

/// Collects the type parameters that types mention.
struct Mentioned {
    params: Vec<Ident>,
    used: Vec<Ident>,
}

impl<'ast> Visit<'ast> for Mentioned {
    fn visit_path(&mut self, path: &'ast Path) {
        if let Some(ident) = path.get_ident()
            && self.params.contains(ident)
        {
            self.used.push(ident.clone());
        }
        visit::visit_path(self, path);
    }
}
