# Completion of fedpeft in bash:  source <(fedpeft completion bash)

_fedpeft() {
    # Bash splits words at "=" and ":"; fedpeft wants KEY=VALUE as one word.
    local words=() i word glue=
    for ((i = 1; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ ( -n $glue || $word == [=:]* ) && ${#words[@]} -gt 0 ]]; then
            words[${#words[@]}-1]+=$word
        else
            words+=("$word")
        fi
        glue=
        [[ $word == *[=:] ]] && glue=1
    done
    if [[ ${COMP_LINE:COMP_POINT-1:1} == [[:space:]] && -n ${words[${#words[@]}-1]} ]]; then
        words+=("")
    fi

    # What stands before the last "=" or ":" is already on the line.
    local last=${words[${#words[@]}-1]} kept= line value
    if [[ $COMP_WORDBREAKS == *=* && $last == *[=:]* ]]; then
        kept=${last%"${last##*[=:]}"}
    fi
    COMPREPLY=()
    while IFS= read -r line; do
        value=${line%%$'\t'*}
        case $value in
            :files) compopt -o default 2>/dev/null ;;
            *=) COMPREPLY+=("${value#"$kept"}"); compopt -o nospace 2>/dev/null ;;
            *) COMPREPLY+=("${value#"$kept"}") ;;
        esac
    done < <(fedpeft completion bash -- "${words[@]}" 2>/dev/null)
}

complete -F _fedpeft fedpeft
