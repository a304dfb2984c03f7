# bash 4.4 or newer
_gemb_completion() {
    local line=${COMP_LINE:0:COMP_POINT} type value
    local word=${line##*[[:space:]]}
    local before=${word#--*=}
    before=${before%"${before##*:}"}  # bash keeps what stands before the last colon
    COMPREPLY=()
    while IFS=, read -r type value; do
        value=${value%%$'\t'*}
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("${value#"$before"}")
                [[ $value == *[/=] ]] && compopt -o nospace
                ;;
        esac
    done < <(COMP_WORDS=$line COMP_CWORD=$word _GEMB_COMPLETE=fish_complete "$1")
    return 0
}
complete -o nosort -F _gemb_completion gemb
