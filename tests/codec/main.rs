//! Does each codec give exactly the plain bytes, and nothing else, whatever is stored?

mod damage;
mod genuine;
mod kit;
mod streams;
